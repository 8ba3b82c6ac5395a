package configs

import (
	"log/slog"
	"maps"
	"path/filepath"
	"time"

	"github.com/gondolin-go/gondolin/sandbox"
)

// Version is the version of the file format that this package reads.
const Version = 1

// Config is a complete configuration: every field has a value.
type Config struct {
	Version int     `koanf:"version" yaml:"version" json:"version"`
	Image   Image   `koanf:"image" yaml:"image" json:"image"`
	Session Session `koanf:"session" yaml:"session" json:"session"`
	// Workspace says what is mounted at WorkspacePath: WorkspaceRoots, WorkspaceCWD,
	// WorkspaceNone, or an absolute path.
	Workspace string   `koanf:"workspace" yaml:"workspace" json:"workspace"`
	Mounts    []Mount  `koanf:"mounts" yaml:"mounts" json:"mounts"`
	Network   Network  `koanf:"network" yaml:"network" json:"network"`
	Secrets   []Secret `koanf:"secrets" yaml:"secrets" json:"secrets"`
	Ingress   Ingress  `koanf:"ingress" yaml:"ingress" json:"ingress"`
	SSH       SSH      `koanf:"ssh" yaml:"ssh" json:"ssh"`
	Audit     Audit    `koanf:"audit" yaml:"audit" json:"audit"`
	Metrics   Metrics  `koanf:"metrics" yaml:"metrics" json:"metrics"`
	Limits    Limits   `koanf:"limits" yaml:"limits" json:"limits"`
	Sessions  Sessions `koanf:"sessions" yaml:"sessions" json:"sessions"`
	Pool      Pool     `koanf:"pool" yaml:"pool" json:"pool"`
	Exec      Exec     `koanf:"exec" yaml:"exec" json:"exec"`
	QEMU      QEMU     `koanf:"qemu" yaml:"qemu" json:"qemu"`
	Paths     Paths    `koanf:"paths" yaml:"paths" json:"paths"`
	Log       Log      `koanf:"log" yaml:"log" json:"log"`

	origins map[string]Origin
	file    string
	dir     string
}

// Image says what sessions run.
type Image struct {
	Name      string `koanf:"name" yaml:"name" json:"name"`
	AutoBuild bool   `koanf:"auto_build" yaml:"auto_build" json:"auto_build"` // build the default image when it is missing
}

// Session says what a session is like.
type Session struct {
	Root     sandbox.RootMode  `koanf:"root" yaml:"root" json:"root"`
	Hostname string            `koanf:"hostname" yaml:"hostname" json:"hostname"`
	User     string            `koanf:"user" yaml:"user" json:"user"` // empty: the image's, or root
	Dir      string            `koanf:"dir" yaml:"dir" json:"dir"`    // empty: WorkspacePath if something is mounted there, the image's, or /root
	Env      map[string]string `koanf:"env" yaml:"env" json:"env"`
}

// Metrics says where figures for Prometheus are served.
type Metrics struct {
	Listen  string `koanf:"listen" yaml:"listen" json:"listen"`    // empty: nowhere
	Exposed bool   `koanf:"exposed" yaml:"exposed" json:"exposed"` // Listen may be more than loopback
}

// Limits bound one session. An agent may lower them for a session and never raise them.
type Limits struct {
	CPUs      int      `koanf:"cpus" yaml:"cpus" json:"cpus"`
	Memory    Size     `koanf:"memory" yaml:"memory" json:"memory"`
	Disk      Size     `koanf:"disk" yaml:"disk" json:"disk"`
	Processes int      `koanf:"processes" yaml:"processes" json:"processes"`
	Wall      Duration `koanf:"wall" yaml:"wall" json:"wall"`
	Idle      Duration `koanf:"idle" yaml:"idle" json:"idle"`
}

// Sessions bounds all sessions together.
type Sessions struct {
	Max       int  `koanf:"max" yaml:"max" json:"max"`
	Templates bool `koanf:"templates" yaml:"templates" json:"templates"` // clone sessions instead of booting them
}

// Pool says how many sessions stand ready beside those in use.
type Pool struct {
	Size   int  `koanf:"size" yaml:"size" json:"size"`
	Memory Size `koanf:"memory" yaml:"memory" json:"memory"` // of all of them together
}

// Exec bounds one command.
type Exec struct {
	TimeoutMax Duration `koanf:"timeout_max" yaml:"timeout_max" json:"timeout_max"`
}

// QEMU says how machines are run.
type QEMU struct {
	Binary      string   `koanf:"binary" yaml:"binary" json:"binary"` // empty: by architecture
	Accelerator string   `koanf:"accelerator" yaml:"accelerator" json:"accelerator"`
	BootTimeout Duration `koanf:"boot_timeout" yaml:"boot_timeout" json:"boot_timeout"`
}

// Paths are directories of the host.
type Paths struct {
	Cache   string `koanf:"cache" yaml:"cache" json:"cache"`
	Runtime string `koanf:"runtime" yaml:"runtime" json:"runtime"`
}

// Log says what is logged and where.
type Log struct {
	Level  string `koanf:"level" yaml:"level" json:"level"`
	Format string `koanf:"format" yaml:"format" json:"format"`
	File   string `koanf:"file" yaml:"file" json:"file"` // empty: standard error
}

// File is the path of the file that was read, empty when there was none.
func (c *Config) File() string { return c.file }

// Dir is the user's configuration directory of gondolin, whether it exists and was
// read from or not; empty when there is no such place.
func (c *Config) Dir() string { return c.dir }

// Origins says for every key, every variable of session.env, and every key of each block
// of a list (mounts[0].path) and each of its texts, where its value comes from.
func (c *Config) Origins() map[string]Origin { return maps.Clone(c.origins) }

// ImageDir is the directory of the image store.
func (c *Config) ImageDir() string { return filepath.Join(c.Paths.Cache, "images") }

// LogLevel is Log.Level as package slog knows it.
func (c *Config) LogLevel() slog.Level {
	var l slog.Level
	_ = l.UnmarshalText([]byte(c.Log.Level)) // one of slog's own names, or info
	return l
}

// HostOptions are the options of the sandbox host.
func (c *Config) HostOptions(log *slog.Logger) sandbox.HostOptions {
	return sandbox.HostOptions{
		CacheDir: c.Paths.Cache, RuntimeDir: c.Paths.Runtime,
		QEMU: c.QEMU.Binary, Accelerator: c.QEMU.Accelerator, BootTimeout: time.Duration(c.QEMU.BootTimeout),
		MaxSessions: c.Sessions.Max, NoTemplates: !c.Sessions.Templates,
		Pool: sandbox.Pool{Size: c.Pool.Size, MemoryMiB: int(c.Pool.Memory)}, Logger: log,
	}
}

// SessionOptions are the options of a session, without its image.
func (c *Config) SessionOptions() sandbox.Options {
	s := c.Session
	return sandbox.Options{
		Root: s.Root, Hostname: s.Hostname, User: s.User, Dir: s.Dir, Env: maps.Clone(s.Env),
		Limits: c.Limits.Sandbox(),
	}
}

// Sandbox is the same in the terms of package sandbox.
func (l Limits) Sandbox() sandbox.Limits {
	return sandbox.Limits{
		CPUs: l.CPUs, MemoryMiB: int(l.Memory), DiskMiB: int(l.Disk), Processes: l.Processes,
		Wall: time.Duration(l.Wall), Idle: time.Duration(l.Idle),
	}
}
