package qemu

import (
	"encoding/json"
	"errors"
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestArgumentsAreAsReviewed(t *testing.T) {
	for name, c := range map[string]Config{
		"tcg-cow":      {Arch: "amd64", Accelerator: TCG, CPUs: 2, MemoryMiB: 2048, Scratch: true},
		"tcg-memory":   {Arch: "amd64", Accelerator: TCG, CPUs: 1, MemoryMiB: 256},
		"kvm-probe":    {Arch: "amd64", Accelerator: KVM, CPUs: 4, MemoryMiB: 1024, Scratch: true, Verbose: true},
		"tcg-template": {Arch: "amd64", Accelerator: TCG, CPUs: 2, MemoryMiB: 2048, Scratch: true, Memory: MemoryShared},
		"tcg-clone":    {Arch: "amd64", Accelerator: TCG, CPUs: 2, MemoryMiB: 2048, Memory: MemoryClone},
		"tcg-load":     {Arch: "amd64", Accelerator: TCG, CPUs: 2, MemoryMiB: 2048, Scratch: true, Memory: MemoryLoad},
		"hvf":          {Arch: "arm64", Accelerator: HVF, CPUs: 2, MemoryMiB: 1024, Scratch: true, Cmdline: "extra=1"},
	} {
		t.Run(name, func(t *testing.T) {
			c.Name, c.Net = "gondolin", Net{MAC: "02:00:00:00:00:02", MTU: 65000}
			got := strings.ReplaceAll(strings.Join(c.Argv(), "\n"), "\n-", "\n\n-") + "\n"
			path := filepath.Join("testdata", name+".args")
			if *update {
				require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
			}
			want, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, string(want), got, "run go test ./sandbox/qemu -update if this is meant")
		})
	}
}

// What QEMU can be made to deny is denied, and no host path is on its command line.
func TestMachineIsConfined(t *testing.T) {
	args := (&Config{Accelerator: TCG, CPUs: 1, MemoryMiB: 256, Scratch: true, Kernel: "/secret/path"}).Argv()
	all := strings.Join(args, " ")
	require.Contains(t, all, "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	require.Contains(t, all, "-nodefaults")
	require.NotContains(t, all, "/secret")
}

func TestVerdictHoldsForThisBootAndThisQEMUOnly(t *testing.T) {
	dir := t.TempDir()
	v := LoadVerdicts(dir, "qemu 1")
	_, known := v.Get(KVM)
	require.False(t, known)
	require.NoError(t, v.Set(KVM, Verdict{Reason: "it hung"}))
	verdict, known := LoadVerdicts(dir, "qemu 1").Get(KVM)
	require.True(t, known)
	require.Equal(t, Verdict{Reason: "it hung"}, verdict)
	_, known = LoadVerdicts(dir, "qemu 2").Get(KVM)
	require.False(t, known, "another QEMU may do better")

	path := filepath.Join(dir, "accelerators.json")
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	var file map[string]any
	require.NoError(t, json.Unmarshal(b, &file))
	file["boot_id"] = "another"
	b, err = json.Marshal(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, b, 0o600))
	_, known = LoadVerdicts(dir, "qemu 1").Get(KVM)
	require.False(t, known, "the host was booted since")
	require.NoError(t, os.WriteFile(path, []byte("{damaged"), 0o600))
	_, known = LoadVerdicts(dir, "qemu 1").Get(KVM)
	require.False(t, known)
}

func TestAutoLeavesOutWhatDidNotWork(t *testing.T) {
	v := LoadVerdicts(t.TempDir(), "q")
	require.NoError(t, v.Set(KVM, Verdict{Reason: "it hung"}))
	require.NoError(t, v.Set(HVF, Verdict{Reason: "it hung"}))
	list, reason, err := Candidates("auto", v)
	require.NoError(t, err)
	require.Equal(t, []Accelerator{TCG}, list)
	require.NotEmpty(t, reason)
	list, _, err = Candidates("kvm", v)
	require.NoError(t, err)
	require.Equal(t, []Accelerator{KVM}, list, "the operator's word is kept")
	_, _, err = Candidates("warp", v)
	require.ErrorContains(t, err, "use auto, kvm, hvf or tcg")
}

func TestMissingQEMUSaysWhatToInstall(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := FindBinary("")
	require.ErrorContains(t, err, "apt-get install")
	require.ErrorContains(t, err, "qemu.binary")
}

// The guest writes the console, and its end is shown on terminals and to models.
func TestConsoleTailHasNoControlCharacters(t *testing.T) {
	c := newConsole()
	c.drain(strings.NewReader("old\n\x1b]0;title\x07\x1b[31mred\u009b31m\r\nbad \xff\xfe utf8\n\n"), true)
	require.Equal(t, "]0;title[31mred31m\nbad  utf8", c.tail(2))
	c.drain(strings.NewReader(strings.Repeat("flood\n", 1<<20)), true)
	require.LessOrEqual(t, len(c.buf), consoleBytes)
	select {
	case <-c.alive:
	default:
		t.Fatal("the first byte is a sign of life")
	}
}

// monitor is a fake QEMU for failures that the real one does not show on demand.
func monitor(t *testing.T, answer func(net.Conn)) *qmp {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		answer(theirs)
		theirs.Close()
	}()
	events := make(chan Event, 100)
	q := newQMP(ours, func(e Event) { events <- e })
	t.Cleanup(func() {
		q.close()
		<-done
	})
	return q
}

func readLine(c net.Conn) {
	var b [1]byte
	for {
		if _, err := c.Read(b[:]); err != nil || b[0] == '\n' {
			return
		}
	}
}

func TestMonitorAnswersErrorsAndEventsAreToldApart(t *testing.T) {
	q := monitor(t, func(c net.Conn) {
		_, _ = c.Write([]byte("{\"QMP\": {}}\n"))
		readLine(c)
		_, _ = c.Write([]byte("{\"event\": \"STOP\"}\n{\"return\": {\"running\": true}}\n"))
		readLine(c)
		_, _ = c.Write([]byte("{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such thing\"}}\n"))
	})
	var status struct{ Running bool }
	require.NoError(t, q.execute("query-status", nil, &status))
	require.True(t, status.Running)
	require.ErrorContains(t, q.execute("frobnicate", nil, nil), "no such thing")
}

func TestMonitorThatDiesOrTalksNonsenseEndsTheCommand(t *testing.T) {
	for name, say := range map[string]string{
		"hangs up": "", "no json": "hello\n", "endless line": strings.Repeat("x", maxQMPLine+10),
	} {
		t.Run(name, func(t *testing.T) {
			q := monitor(t, func(c net.Conn) {
				readLine(c)
				_, _ = c.Write([]byte(say))
			})
			require.Error(t, q.execute("query-status", nil, nil))
		})
	}
}

func FuzzQMP(f *testing.F) {
	f.Add([]byte("{\"return\": {}}\n"))
	f.Add([]byte("{\"event\": \"X\", \"data\": []}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := net.Pipe()
		q := newQMP(ours, func(Event) {})
		go func() {
			_, _ = theirs.Write(data)
			theirs.Close()
		}()
		<-q.gone
		q.close()
	})
}

func TestStartOfNothingLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	_, err := Start(t.Context(), Config{Binary: "/bin/false", Kernel: "/no/such"}, Options{Dir: dir})
	require.ErrorIs(t, err, os.ErrNotExist)
	entries, err := os.ReadDir(dir)
	require.NoError(t, errors.Join(err))
	require.Empty(t, entries)
}
