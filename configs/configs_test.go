package configs

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/sandbox"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// load reads a file, an environment and a command line.
func load(t *testing.T, file string, env []string, args ...string) (*Config, error) {
	t.Helper()
	src := Sources{Env: env, Flags: Flags()}
	if file != "" {
		src.File = write(t, file)
	}
	require.NoError(t, src.Flags.Parse(args))
	return Load(src)
}

// problems returns the mistakes as lines, with the file called config.yaml.
func problems(t *testing.T, err error) []string {
	t.Helper()
	var e *Error
	require.ErrorAs(t, err, &e)
	var lines []string
	for _, p := range e.Problems {
		if p.Kind == KindFile {
			p.Name = "config.yaml"
		}
		lines = append(lines, p.String())
	}
	return lines
}

func TestWithoutAnySourceTheDefaultsApply(t *testing.T) {
	c, err := Load(Sources{})
	require.NoError(t, err)
	assert.Equal(t, "default", c.Image.Name)
	assert.True(t, c.Image.AutoBuild)
	assert.Equal(t, sandbox.DefaultLimits, c.Limits.Sandbox())
	assert.Equal(t, sandbox.DefaultMaxSessions, c.Sessions.Max)
	assert.Equal(t, Duration(time.Hour), c.Exec.TimeoutMax)
	assert.NotEmpty(t, c.Paths.Cache)
	assert.NotEmpty(t, c.Paths.Runtime)
	assert.Equal(t, slog.LevelInfo, c.LogLevel())
	assert.Empty(t, c.File())
	for key, o := range c.Origins() {
		assert.Equal(t, KindDefault, o.Kind, key)
	}
}

func TestALaterLayerWinsKeyByKey(t *testing.T) {
	file := "version: 1\nlimits:\n  cpus: 3\n  memory: 3GiB\n  disk: 3GiB\nsession:\n  env:\n    A: file\n    B: file\n    C: file\n"
	env := []string{"GONDOLIN_LIMITS_MEMORY=4GiB", "GONDOLIN_LIMITS_DISK=4GiB", "GONDOLIN_SESSION_ENV_B=env", "GONDOLIN_SESSION_ENV_C=env", "OTHER=x"}
	c, err := load(t, file, env, "--disk", "5GiB", "--env", "C=flag", "--env=D=flag=1,2", "--auto-build=false")
	require.NoError(t, err)
	assert.Equal(t, 3, c.Limits.CPUs)
	assert.Equal(t, "4GiB", c.Limits.Memory.String())
	assert.Equal(t, "5GiB", c.Limits.Disk.String())
	assert.Equal(t, 4096, c.Limits.Processes)
	assert.False(t, c.Image.AutoBuild)
	assert.Equal(t, map[string]string{"A": "file", "B": "env", "C": "flag", "D": "flag=1,2"}, c.Session.Env)

	from := map[string]string{}
	for key, o := range c.Origins() {
		from[key] = strings.Replace(o.String(), c.File(), "FILE", 1)
	}
	assert.Equal(t, "FILE:1", from["version"])
	assert.Equal(t, "FILE:3", from["limits.cpus"])
	assert.Equal(t, "environment variable GONDOLIN_LIMITS_MEMORY", from["limits.memory"])
	assert.Equal(t, "flag --disk", from["limits.disk"])
	assert.Equal(t, "default", from["limits.processes"])
	assert.Equal(t, "FILE:8", from["session.env.A"])
	assert.Equal(t, "environment variable GONDOLIN_SESSION_ENV_B", from["session.env.B"])
	assert.Equal(t, "flag --env", from["session.env.C"])
}

func TestEveryMistakeInAFileIsNamedWithLineKeyAndRemedy(t *testing.T) {
	for _, tt := range []struct{ name, file, want string }{
		{"misspelt key", "limits:\n  memroy: 2GiB", "config.yaml:3: unknown key limits.memroy: did you mean limits.memory?"},
		{"misspelt section", "limit:\n  memory: 2GiB", "config.yaml:2: unknown key limit: did you mean limits?"},
		{"key in the wrong place", "memory: 2GiB", "config.yaml:2: unknown key memory: did you mean limits.memory?"},
		{"key like nothing", "limits:\n  zzzzzz: 1", "config.yaml:3: unknown key limits.zzzzzz: known in limits are cpus, memory, disk, processes, wall, idle"},
		{"dotted key", "limits.memory: 2GiB", "config.yaml:2: unknown key limits.memory: write `limits:` and below it, indented, `memory:`"},
		{"duplicate key", "limits:\n  cpus: 1\n  cpus: 2", "config.yaml:4: duplicate key limits.cpus: line 3 has it already"},
		{"duplicate section", "log: {level: info}\nlog: {level: info}", "config.yaml:3: duplicate key log: line 2 has it already"},
		{"text for a number", "limits:\n  cpus: many", `config.yaml:3: limits.cpus: want a whole number, got the text "many"`},
		{"quoted number", "limits:\n  cpus: \"2\"", `config.yaml:3: limits.cpus: want a whole number, got the text "2"`},
		{"fraction", "limits:\n  cpus: 1.5", `config.yaml:3: limits.cpus: want a whole number, got the number "1.5"`},
		{"hexadecimal", "limits:\n  cpus: 0x2", `config.yaml:3: limits.cpus: "0x2" is no whole number`},
		{"number for a truth value", "image:\n  auto_build: 1", `config.yaml:3: image.auto_build: want true or false, got the number "1"`},
		{"yes for true", "image:\n  auto_build: yes", `config.yaml:3: image.auto_build: want true or false, got the text "yes"`},
		{"truth value for text", "session:\n  user: true", `config.yaml:3: session.user: want text, got the truth value "true": put it in quotes`},
		{"list for a value", "limits:\n  memory: [1, 2]", "config.yaml:3: limits.memory: want a size such as 2GiB, got a list"},
		{"block for a value", "limits:\n  wall:\n    x: 1", "config.yaml:4: limits.wall: want a duration such as 30m, got a block of keys"},
		{"value for a block", "limits: 3", `config.yaml:2: limits: want a block of keys, got the number "3"`},
		{"no value", "limits:\n  cpus:", "config.yaml:3: limits.cpus: it has no value: give it one, or leave the key out"},
		{"custom type", "limits:\n  cpus: !x 2", `config.yaml:3: limits.cpus: want a whole number, got a value of the type !x "2"`},
		{"range of a number", "limits:\n  cpus: 65", "config.yaml:3: limits.cpus: 65 is out of range: use 1 to 64"},
		{"zero", "limits:\n  cpus: 0", "config.yaml:3: limits.cpus: 0 is out of range: leave the key out to get the default"},
		{"negative", "limits:\n  processes: -1", "config.yaml:3: limits.processes: -1 is out of range: use 16 to 1000000"},
		{"huge", "limits:\n  processes: 99999999999999999999", `config.yaml:3: limits.processes: want a whole number, got the number "99999999999999999999"`},
		{"range of a size", "limits:\n  memory: 64MiB", "config.yaml:3: limits.memory: 64MiB is out of range: use 128 to 1048576 MiB"},
		{"range of sessions", "sessions:\n  max: 0", "config.yaml:3: sessions.max: 0 is out of range: use 1 to 1000"},
		{"decimal unit", "limits:\n  memory: 2GB", `config.yaml:3: limits.memory: "2GB" can be read in two ways: write 2GiB`},
		{"unknown unit", "limits:\n  disk: 2 elephants", `config.yaml:3: limits.disk: "2 elephants" has an unknown unit "elephants": use MiB, GiB or TiB`},
		{"split MiB", "limits:\n  disk: 64.5MiB", `config.yaml:3: limits.disk: "64.5MiB" is not a whole number of MiB`},
		{"absurd size", "limits:\n  disk: 99999999999999999999TiB", `config.yaml:3: limits.disk: "99999999999999999999TiB" is too large`},
		{"no unit", "limits:\n  wall: 30", `config.yaml:3: limits.wall: "30" has no unit: write 30s, 30m or 30h`},
		{"days", "limits:\n  wall: 2d", `config.yaml:3: limits.wall: "2d": days are not known, write 48h`},
		{"no duration", "limits:\n  wall: soon", `config.yaml:3: limits.wall: "soon" is no duration: write it like 30s, 15m or 2h`},
		{"negative duration", "limits:\n  wall: -1h", `config.yaml:3: limits.wall: "-1h" is negative`},
		{"too short", "limits:\n  idle: 1ms", `config.yaml:3: limits.idle: "1ms" is out of range: use 1s to 8760h, or never`},
		{"absurd duration", "limits:\n  wall: 1000000h", `config.yaml:3: limits.wall: "1000000h" is out of range: use 1s to 8760h, or never`},
		{"absurd boot", "qemu:\n  boot_timeout: 2h", `config.yaml:3: qemu.boot_timeout: "2h" is out of range: use 1s to 1h`},
		{"user of three parts", "session:\n  user: a:b:c", `config.yaml:3: session.user: "a:b:c" is no user: use a name or a uid, and after a colon a group if you like, such as node, 1000 or 1000:1000`},
		{"user without a name", "session:\n  user: \":0\"", `config.yaml:3: session.user: ":0" is no user: use a name or a uid, and after a colon a group if you like, such as node, 1000 or 1000:1000`},
		{"negative user", "session:\n  user: -1", `config.yaml:3: session.user: "-1" is no user: use a name or a uid, and after a colon a group if you like, such as node, 1000 or 1000:1000`},
		{"uid that is none", "session:\n  user: 4294967295", `config.yaml:3: session.user: "4294967295" is no user: a uid or gid is below 4294967295`},
		{"long socket path", "paths:\n  runtime: /" + strings.Repeat("r", 60), `config.yaml:3: paths.runtime: "/` + strings.Repeat("r", 59) + `…" has 61 bytes, and at most 60 leave room for the sockets in it: choose a shorter one`},
		{"relative socket path", "paths:\n  runtime: run", `config.yaml:3: paths.runtime: "run" is a relative path: make it absolute or begin it with ~/`},
		{"tabs", "limits:\n\tcpus: 2", "config.yaml:3: tabs are not allowed for indentation: use spaces, two for each step"},
		{"never where it cannot be", "exec:\n  timeout_max: never", "config.yaml:3: exec.timeout_max: it cannot be never: give a duration"},
		{"misspelt choice", "session:\n  root: memry", `config.yaml:3: session.root: "memry" is unknown, use cow, memory, readonly: did you mean memory?`},
		{"host name", "session:\n  hostname: a_b", `config.yaml:3: session.hostname: "a_b" is no host name: use 1 to 63 letters, digits and inner hyphens`},
		{"relative guest path", "session:\n  dir: work", `config.yaml:3: session.dir: "work" is not absolute: it is a path in the machine and begins with /`},
		{"relative host path", "paths:\n  cache: x", `config.yaml:3: paths.cache: "x" is a relative path: make it absolute or begin it with ~/`},
		{"empty image", "image:\n  name: ''", "config.yaml:3: image.name: it must not be empty"},
		{"name of a variable", "session:\n  env:\n    A-B: x", `config.yaml:4: session.env: "A-B" is no name of a variable: use letters, digits and _, not beginning with a digit`},
		{"list as a variable", "session:\n  env:\n    A: [x]", "config.yaml:4: session.env.A: want text, got a list"},
		{"variable without value", "session:\n  env:\n    A:", `config.yaml:4: session.env.A: it has no value: write "" for an empty one`},
		{"alias", "limits:\n  cpus: &c 2\n  processes: *c", "config.yaml:4: limits.processes: aliases are not understood: write the value out"},
		{"merge key", "limits:\n  <<: {cpus: 2}", "config.yaml:3: limits: merge keys (<<) are not understood: write the values out"},
		{"key that is no word", "? [a]\n: 1", "config.yaml:2: want a word as a key, got a list"},
		{"key with control characters", "\"a\\e[31m\": 1", `config.yaml:2: unknown key "a\x1b[31m": known are version, image, session, workspace, mounts, network, secrets, ingress, ssh, audit, metrics, limits, sessions, pool, exec, qemu, paths, log`},
		{"second document", "---\nlog: {level: info}", "config.yaml:2: a second YAML document begins here: put everything into one"},
		{"no YAML", "limits: [", "config.yaml:2: this is not YAML: did not find expected node content"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := load(t, "version: 1\n"+tt.file+"\n", nil)
			assert.Equal(t, []string{tt.want}, problems(t, err))
		})
	}
}

func TestTheVersionIsRequiredAndKnown(t *testing.T) {
	for file, want := range map[string]string{
		"log: {level: info}": "config.yaml: the version is missing: begin the file with `version: 1`",
		"":                   "config.yaml: the version is missing: begin the file with `version: 1`",
		"# nothing\n":        "config.yaml: the version is missing: begin the file with `version: 1`",
		"version: 2":         "config.yaml:1: version 2 is unknown: this gondolin-mcp reads version 1",
		"version: one":       "config.yaml:1: version: want a number, got the text \"one\": write `version: 1`",
		"version: [1]":       "config.yaml:1: version: want a number, got a list: write `version: 1`",
		"- version: 1":       "config.yaml:1: want keys and values, got a list",
		"\xff\xfe":           "config.yaml: this is not YAML: ",
	} {
		t.Run(file, func(t *testing.T) {
			_, err := Load(Sources{File: write(t, file+" ")})
			lines := problems(t, err)
			require.Len(t, lines, 1)
			assert.True(t, strings.HasPrefix(lines[0], want), "%s", lines[0])
		})
	}
}

func TestMistakesOutsideOfTheFileNameTheirOrigin(t *testing.T) {
	for _, tt := range []struct{ env, arg, want string }{
		{env: "GONDOLIN_LIMITS_MEMROY=1", want: "environment variable GONDOLIN_LIMITS_MEMROY: it is unknown: did you mean GONDOLIN_LIMITS_MEMORY?"},
		{env: "GONDOLIN_SESSION_ENV=A=1", want: "environment variable GONDOLIN_SESSION_ENV: it is unknown: set GONDOLIN_SESSION_ENV_NAME for each variable"},
		{env: "GONDOLIN_ZZZZZZZZZZZ=1", want: "environment variable GONDOLIN_ZZZZZZZZZZZ: it is unknown: unset it, as every GONDOLIN_ variable must be the name of a key (see `gondolin-mcp config example`)"},
		{env: "GONDOLIN_LIMITS_CPUS=x", want: `environment variable GONDOLIN_LIMITS_CPUS: "x" is no whole number`},
		{env: "GONDOLIN_LIMITS_CPUS=", want: `environment variable GONDOLIN_LIMITS_CPUS: "" is no whole number`},
		{env: "GONDOLIN_LIMITS_CPUS=99999999999", want: `environment variable GONDOLIN_LIMITS_CPUS: "99999999999" is out of range`},
		{env: "GONDOLIN_IMAGE_AUTO_BUILD=on", want: `environment variable GONDOLIN_IMAGE_AUTO_BUILD: want true or false, got "on"`},
		{env: "GONDOLIN_SESSION_ENV_1=x", want: `environment variable GONDOLIN_SESSION_ENV_1: "1" is no name of a variable: use letters, digits and _, not beginning with a digit`},
		{env: "GONDOLIN_PATHS_CACHE=x", want: `environment variable GONDOLIN_PATHS_CACHE: "x" is a relative path: make it absolute or begin it with ~/`},
		{arg: "--memory=1", want: "flag --memory: limits.memory: 1 is out of range: use 128 to 1048576 MiB"},
		{arg: "--accelerator=kmv", want: `flag --accelerator: qemu.accelerator: "kmv" is unknown, use auto, kvm, hvf, tcg: did you mean kvm?`},
		{arg: "--env=A", want: `flag --env: session.env: "A" has no =: write --env NAME=VALUE`},
		{arg: "--auto-build=maybe", want: `flag --auto-build: image.auto_build: want true or false, got "maybe"`},
	} {
		t.Run(tt.env+tt.arg, func(t *testing.T) {
			var env, args []string
			if tt.env != "" {
				env = []string{tt.env}
			}
			if tt.arg != "" {
				args = []string{tt.arg}
			}
			_, err := load(t, "", env, args...)
			assert.Equal(t, []string{tt.want}, problems(t, err))
		})
	}
}

func TestMistakesOfAllLayersAreReportedAtOnce(t *testing.T) {
	_, err := load(t, "version: 3\nlimits:\n  cpus: 0\n  memroy: 1\nlog:\n  level: loud\n",
		[]string{"GONDOLIN_LOG_FORMAT=xml", "GONDOLIN_BOGUS_THING=1"}, "--disk=lots", "--max-sessions=0")
	assert.Len(t, problems(t, err), 8)
	assert.Contains(t, err.Error(), "the configuration has 8 mistakes:\n")
}

func TestTooManyMistakesAreCounted(t *testing.T) {
	var b strings.Builder
	b.WriteString("version: 1\n")
	for i := range 250 {
		fmt.Fprintf(&b, "k%d: 1\n", i)
	}
	_, err := load(t, b.String(), nil)
	var e *Error
	require.ErrorAs(t, err, &e)
	assert.Len(t, e.Problems, maxProblems)
	assert.Equal(t, 150, e.More)
	assert.True(t, strings.HasSuffix(err.Error(), "\nand 150 more"))
}

func TestAFileThatCannotBeReadIsAMistake(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.yaml")
	_, err := Load(Sources{File: missing})
	assert.EqualError(t, err, missing+": cannot be read: no such file or directory")
	_, err = Load(Sources{Env: []string{"GONDOLIN_CONFIG=" + missing}})
	assert.EqualError(t, err, missing+": cannot be read: no such file or directory: it is named by GONDOLIN_CONFIG")
	_, err = Load(Sources{File: t.TempDir()})
	assert.ErrorContains(t, err, "is a directory")
}

func TestAHugeFileIsRefusedUnread(t *testing.T) {
	_, err := Load(Sources{File: "/dev/zero"})
	assert.EqualError(t, err, "/dev/zero: the file is larger than 1024 KiB: this is no configuration of gondolin-mcp")
}

func TestAnAliasBombIsHarmless(t *testing.T) {
	var b strings.Builder
	b.WriteString("version: 1\na0: &a0 [x,x,x,x,x,x,x,x,x,x]\n")
	for i := 1; i < 20; i++ {
		fmt.Fprintf(&b, "a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10), ","))
	}
	b.WriteString("session:\n  env: *a19\n")
	began := time.Now()
	_, err := load(t, b.String(), nil)
	assert.Contains(t, strings.Join(problems(t, err), "\n"), "session.env: aliases are not understood")
	assert.Less(t, time.Since(began), time.Second)
}

func TestTheFileIsFoundInTheUsualPlaces(t *testing.T) {
	home := t.TempDir()
	usual := filepath.Join(home, ".config", "gondolin", "config.yaml")
	path, by := Locate(Sources{Env: []string{"HOME=" + home}})
	assert.Equal(t, usual, path)
	assert.Empty(t, by)

	require.NoError(t, os.MkdirAll(filepath.Dir(usual), 0o700))
	require.NoError(t, os.WriteFile(usual, []byte("version: 1\nlimits: {cpus: 7}\n"), 0o600))
	c, err := Load(Sources{Env: []string{"HOME=" + home}})
	require.NoError(t, err)
	assert.Equal(t, 7, c.Limits.CPUs)
	assert.Equal(t, usual, c.File())

	c, err = Load(Sources{Env: []string{"HOME=" + home, "XDG_CONFIG_HOME=/xdg"}})
	require.NoError(t, err)
	assert.Equal(t, "/xdg/gondolin", c.Dir(), "also when nothing is there")
	path, by = Locate(Sources{Env: []string{"HOME=" + home, "XDG_CONFIG_HOME=/xdg"}})
	assert.Equal(t, "/xdg/gondolin/config.yaml", path)
	assert.Empty(t, by)
	path, by = Locate(Sources{Env: []string{"HOME=" + home, "GONDOLIN_CONFIG=~/mine.yaml"}})
	assert.Equal(t, home+"/mine.yaml", path)
	assert.Equal(t, KindEnv, by)
	path, by = Locate(Sources{File: "x.yaml", Env: []string{"GONDOLIN_CONFIG=~/mine.yaml"}})
	assert.Equal(t, "x.yaml", path)
	assert.Equal(t, KindFlag, by)
	path, by = Locate(Sources{})
	assert.Empty(t, path)
	assert.Empty(t, by)
}

func TestPathsMayBeginWithTheHomeDirectory(t *testing.T) {
	c, err := load(t, "version: 1\npaths: {cache: ~/c}\nlog: {file: ''}\n", []string{"HOME=/h", "GONDOLIN_PATHS_RUNTIME=~/r"}, "--log-file", "l.txt")
	require.NoError(t, err)
	wd, err := os.Getwd()
	require.NoError(t, err)
	assert.Equal(t, Paths{Cache: "/h/c", Runtime: "/h/r"}, c.Paths)
	assert.Equal(t, filepath.Join(wd, "l.txt"), c.Log.File)
	assert.Equal(t, "/h/c/images", c.ImageDir())
}

func TestValuesAreReadAsPeopleWriteThem(t *testing.T) {
	for text, want := range map[string]string{
		"2048": "2GiB", "512MiB": "512MiB", "512M": "512MiB", "2g": "2GiB", "2 GiB": "2GiB", "1.5GiB": "1536MiB", "0.5TiB": "512GiB", "2TiB": "2TiB",
	} {
		s, err := parseSize(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, s.String(), text)
	}
	for text, want := range map[string]string{"never": "never", "90s": "1m30s", "1h": "1h", "30m": "30m", "1h0m1s": "1h0m1s", "36h": "36h", "0s": "0s"} {
		d, err := parseDuration(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, d.String(), text)
	}
	c, err := load(t, "version: 1\nsession:\n  user: 1000\n  env: {PORT: 8080, ON: yes, V: 1.10, E: ''}\n", nil)
	require.NoError(t, err)
	assert.Equal(t, "1000", c.Session.User)
	assert.Equal(t, map[string]string{"PORT": "8080", "ON": "yes", "V": "1.10", "E": ""}, c.Session.Env)
}

func TestConversionsCarryEveryValue(t *testing.T) {
	c, err := load(t, "", nil, "--cpus=3", "--memory=3GiB", "--disk=4GiB", "--processes=77", "--wall=5h", "--idle=6m", "--root=memory", "--hostname=h",
		"--user=u", "--dir=/d", "--env=A=b", "--max-sessions=9", "--templates=false", "--pool=2", "--pool-memory=1GiB", "--qemu=/q", "--accelerator=tcg", "--boot-timeout=7s", "--cache-dir=/c", "--runtime-dir=/r", "--log-level=debug")
	require.NoError(t, err)
	assert.Equal(t, sandbox.Options{
		Root: sandbox.RootMemory, Hostname: "h", User: "u", Dir: "/d", Env: map[string]string{"A": "b"},
		Limits: sandbox.Limits{CPUs: 3, MemoryMiB: 3072, DiskMiB: 4096, Processes: 77, Wall: 5 * time.Hour, Idle: 6 * time.Minute},
	}, c.SessionOptions())
	assert.Equal(t, sandbox.HostOptions{
		CacheDir: "/c", RuntimeDir: "/r", QEMU: "/q", Accelerator: "tcg", MaxSessions: 9, BootTimeout: 7 * time.Second,
		NoTemplates: true, Pool: sandbox.Pool{Size: 2, MemoryMiB: 1024},
	}, c.HostOptions(nil))
	assert.Equal(t, slog.LevelDebug, c.LogLevel())
}

func TestWhatIsShownLoadsAgainAsTheSame(t *testing.T) {
	c, err := load(t, "version: 1\nlimits: {wall: 90m, memory: 700}\n", []string{"GONDOLIN_SESSION_ENV_A=\"x: #\ny\""}, "--idle", "never", "--user", "true")
	require.NoError(t, err)
	for _, origins := range []bool{false, true} {
		text, err := c.YAML(origins)
		require.NoError(t, err)
		again, err := load(t, string(text), nil)
		require.NoError(t, err, "%s", text)
		again.origins, again.file, again.dir = c.origins, c.file, c.dir
		assert.Equal(t, c, again)
	}
	text, err := c.YAML(true)
	require.NoError(t, err)
	assert.Contains(t, string(text), "wall: 1h30m # "+c.File()+":2\n")
	assert.Contains(t, string(text), "idle: never # flag --idle\n")
	assert.Contains(t, string(text), "cpus: 2 # default\n")
}

func TestEntriesHaveEveryKeyWithItsOrigin(t *testing.T) {
	c, err := load(t, "", nil, "--env=A=1", "--memory=1GiB")
	require.NoError(t, err)
	var names []string
	for _, e := range c.Entries() {
		names = append(names, e.Key)
		assert.NotEmpty(t, e.Origin.Kind, e.Key)
		assert.NotNil(t, e.Value, e.Key)
	}
	assert.Len(t, names, len(keys)+1) // version; env has one variable, and there are no mounts
	b, err := json.Marshal(c.Entries())
	require.NoError(t, err)
	assert.Contains(t, string(b), `{"key":"limits.memory","value":"1GiB","origin":{"kind":"flag","name":"--memory"}}`)
}

// paths walks a configuration's fields.
func fieldPaths(t reflect.Type, prefix string) []string {
	var list []string
	for i := range t.NumField() {
		f := t.Field(i)
		name := f.Tag.Get("koanf")
		switch {
		case !f.IsExported():
		case f.Type.Kind() == reflect.Struct:
			list = append(list, fieldPaths(f.Type, prefix+name+".")...)
		case f.Type.Kind() == reflect.Pointer:
			list = append(list, fieldPaths(f.Type.Elem(), prefix+name+".")...)
		default:
			list = append(list, prefix+name)
		}
	}
	return list
}

func TestTheTableHasExactlyTheFieldsOfConfig(t *testing.T) {
	want := []string{"version"}
	flags := map[string]string{}
	for _, k := range keys {
		want = append(want, k.path)
		assert.NotEmpty(t, k.help, k.path)
		if other, twice := flags[k.flag]; twice && k.flag != "" {
			t.Errorf("flag --%s is of %s and %s", k.flag, other, k.path)
		}
		flags[k.flag] = k.path
	}
	assert.Equal(t, want, fieldPaths(reflect.TypeFor[Config](), ""))
}

func TestExamplesLoad(t *testing.T) {
	assert.Equal(t, []string{"full", "locked-down", "minimal"}, Examples())
	for _, name := range Examples() {
		_, err := Load(Sources{File: name + ".yaml"})
		assert.NoError(t, err)
	}
	_, err := Example("nope")
	assert.ErrorContains(t, err, "there are full, locked-down, minimal")
}

func TestTheFullExampleNamesEveryKeyWithItsDefault(t *testing.T) {
	c, err := Load(Sources{File: "full.yaml"})
	require.NoError(t, err)
	defaults, err := Load(Sources{})
	require.NoError(t, err)
	for _, path := range fieldPaths(reflect.TypeFor[Config](), "") {
		if path != sessionEnv {
			assert.Equal(t, KindFile, c.Origins()[path].Kind, path)
		}
	}
	b, err := Example("full")
	require.NoError(t, err)
	assert.Contains(t, string(b), "\n  env: {}\n")
	c.origins, c.file = defaults.origins, defaults.file
	assert.Equal(t, defaults, c)
}

func TestErrorIsTheOnlyErrorOfLoad(t *testing.T) {
	_, err := load(t, "nonsense", nil)
	var e *Error
	assert.True(t, errors.As(err, &e))
}
