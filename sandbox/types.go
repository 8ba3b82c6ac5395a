package sandbox

import (
	"io"
	"time"
)

// RootMode says where writes to the guest's root file system go.
type RootMode string

// The root modes.
const (
	RootCOW      RootMode = "cow"      // to a scratch disk that dies with the session (default)
	RootMemory   RootMode = "memory"   // to guest memory
	RootReadOnly RootMode = "readonly" // nowhere; /tmp, /run and /dev/shm stay writable in memory
)

// Image names the files of a guest image. Package images makes them; any
// kernel with its modules and any root disk will do.
type Image struct {
	ID       string // names the image in errors and in Info
	Key      string // names its content: images with the same one are the same; default: made of the files' paths, sizes and times
	Kernel   string // path of a bzImage or an ELF vmlinux with a PVH entry
	Modules  string // path of a newc cpio with lib/gondolin/modules/order and the modules it lists
	RootDisk string // path of a read-only ext4 file system
	Env      map[string]string
	Dir      string // default working directory
	User     string // default user
}

// Limits bound what one session may use. A zero field takes the default of
// DefaultLimits; reaching a limit is told in words, never as a hang.
type Limits struct {
	CPUs      int           // virtual CPUs, 1 to 64
	MemoryMiB int           // guest memory, 128 to 1048576 MiB
	DiskMiB   int           // scratch disk in RootCOW mode, 64 to 16777216 MiB (sparse)
	Processes int           // processes and threads of all commands together, 16 to 1000000
	Wall      time.Duration // age at which the session ends; negative: never
	Idle      time.Duration // time without a call after which the session ends; negative: never
}

// Options say what a session is. Only Image is required.
type Options struct {
	Image    Image
	Root     RootMode
	Limits   Limits
	Hostname string            // default "gondolin-" and the session's id
	Env      map[string]string // for every command; a command's own Env wins
	Dir      string            // default working directory, "/root" when empty and the image has none
	User     string            // default user, "root" when empty and the image has none
	Label    string            // free text shown in lists
	Mounts   []Mount           // directories that the host serves
	Denials  *DenialLog        // where Mounts note what they refuse; default: a new one
	Network  *Network          // what the guest may reach; nil: nothing

	// Visited is told of each command that an attached program (see Attach) or a client of SSH
	// is about to start, of an SFTP server as sftp; an error refuses it. The function that it returns is called when the
	// command has ended or was left running. Nil: nobody is told.
	Visited func(Command) (ended func(Exit, error), err error)
	// Snapshotted is told of each snapshot that was made of the session, also when an attached program
	// asked for it. Nil: nobody is told.
	Snapshotted func(*Snapshot)
}

// State is where a session is in its life.
type State string

// The states of a session, in order.
const (
	StateStarting State = "starting"
	StateRunning  State = "running"
	StateClosed   State = "closed"
)

// Info describes a session at one moment.
type Info struct {
	ID          string
	Label       string
	State       State
	Reason      string // why it closed
	Created     time.Time
	LastUsed    time.Time
	Image       string
	Accelerator string // "kvm", "hvf" or "tcg"
	Root        RootMode
	Limits      Limits
	Processes   int // commands that run now
	Boot        time.Duration
	Origin      Origin
	Dir         string   // where commands start; empty: the user's home
	User        string   // whom commands run as
	Mounts      []string // directories that the host serves
	Holder      string   // HostOptions.Register of the process that holds it
	PID         int      // of that process
}

// Origin says how a session's machine came to be.
type Origin string

// The origins.
const (
	OriginBooted Origin = "booted"
	OriginCloned Origin = "cloned" // from a template
	OriginPooled Origin = "pooled" // cloned before it was asked for
	// OriginForked and OriginRestored machines go on where another stood.
	OriginForked   Origin = "forked"
	OriginRestored Origin = "restored"
)

// Command describes one process to run in the guest. Exactly one of Argv and
// Shell must be set.
type Command struct {
	Argv  []string
	Shell string // run with the guest's bash, or sh where it has none, as `-c Shell`
	Dir   string // working directory; default Options.Dir
	Env   map[string]string
	User  string // name or uid[:gid]; default Options.User

	// Stdin is copied to the process; nil gives it /dev/null unless KeepStdin is set. With
	// TTY its end gives end of file to everything that reads the terminal afterwards.
	Stdin io.Reader
	// KeepStdin leaves standard input open for Session.Input.
	KeepStdin bool

	// Stdout and Stderr receive output as it comes. A slow writer slows only this
	// process. Nil discards. With TTY all output is on Stdout.
	Stdout, Stderr io.Writer
	TTY            *TTYSize

	// Timeout ends the process (TERM to its group, KILL to everything it started
	// after Grace) and sets Exit.TimedOut. Zero: none.
	Timeout time.Duration
	// Grace is the time between TERM and KILL, default 2 s.
	Grace time.Duration

	// Retain keeps the process listed and its newest output (at most SpoolBytes)
	// readable through Session.Output after it ended, until Release, or until the
	// newest 64 ended processes push it out.
	Retain bool
	// SpoolBytes bounds what is kept, 64 KiB (512 KiB where output is waited for)
	// to 64 MiB, default 1 MiB.
	SpoolBytes int

	part string // of the guest's own program, in the place of Argv and Shell
}

// TTYSize is the size of a terminal in characters.
type TTYSize struct{ Rows, Cols uint16 }

// Exit tells how a process ended.
type Exit struct {
	ID       string // the process, for Output, Input, Signal and Release
	Code     int    // exit code; 128+signal when a signal ended it, as a shell says it
	Signal   string // "SIGKILL", …; empty after a plain exit
	TimedOut bool
	Stdout   int64 // bytes the process wrote
	Stderr   int64
	Duration time.Duration
	// Note names a circumstance worth telling, such as a full disk or a process killed for want of memory.
	Note string
}

// JobState is the state of a started process.
type JobState string

// The states of a job.
const (
	JobRunning JobState = "running"
	JobExited  JobState = "exited"
)

// Job describes a process that runs or is retained.
type Job struct {
	ID      string
	Command string // for people
	State   JobState
	Started time.Time
	Exit    *Exit // set once exited
	Output  int64 // bytes written so far, both streams
}

// OutputChunk is a part of a process's output from a cursor on.
type OutputChunk struct {
	Data    []byte // both streams in the order in which they were read
	Offset  int64  // position of Data[0]; larger than asked for when older output was dropped
	Next    int64  // cursor for the next call
	Dropped int64  // bytes between the asked offset and Offset that are gone
	Job     Job
}

// FileInfo describes one file of the guest.
type FileInfo struct {
	Name    string // base name, or the path relative to the root of a Glob
	Type    string // "file", "dir", "symlink", "device", "pipe", "socket"
	Size    int64
	Mode    uint32 // permission bits with setuid, setgid and sticky
	UID     uint32
	GID     uint32
	ModTime time.Time
	Target  string // of a symlink
}

// WriteOptions govern Session.WriteFile. The zero value replaces the file
// atomically, keeps the mode and owner of one that exists, and makes a new one 0644.
type WriteOptions struct {
	Mode     *uint32 // permission bits
	Append   bool    // append in place instead of replacing
	Parents  bool    // make missing parent directories
	IfSHA256 string  // refuse with ErrChanged unless the present content has this digest
	IfAbsent bool    // refuse with fs.ErrExist when it exists
	User     string  // owner of a new file; default Options.User
}

// Written tells what WriteFile did.
type Written struct {
	Bytes   int64
	SHA256  string // of the bytes given
	Created bool
}

// EditResult tells what EditFile did.
type EditResult struct {
	Replacements int
	Before       []byte
	After        []byte
}

// Lines is a range of a text file's lines.
type Lines struct {
	Lines      []string // without line ends
	First      int      // number of the first line, from 1
	TotalLines int
	Size       int64
	SHA256     string // of the whole file
	Truncated  bool   // more lines follow, or a line was cut
	Binary     bool   // holds a NUL byte; Lines is empty then
}

// GlobOptions govern Session.Glob.
type GlobOptions struct {
	Root    string // default Options.Dir
	Pattern string // doublestar syntax: *, **, ?, [a-z], {a,b}
	Limit   int    // at most 10000, default 1000
}

// GrepOptions govern Session.Grep.
type GrepOptions struct {
	Root         string // file or directory; default Options.Dir
	Pattern      string // RE2 syntax
	Glob         string // only files whose path below Root, or whose name, matches
	IgnoreCase   bool
	Hidden       bool // also names that begin with a dot
	Limit        int  // matching lines, at most 10000, default 1000
	MaxLineBytes int  // longer lines are cut, default 500
	Before       int  // context lines, at most 20
	After        int
}

// GrepMatch is one line found by Grep.
type GrepMatch struct {
	Path    string // relative to Root
	Line    int
	Text    string
	Context bool // a context line, not a match
}
