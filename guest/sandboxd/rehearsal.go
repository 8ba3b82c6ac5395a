//go:build linux

package sandboxd

import (
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/near"
	"github.com/gondolin-go/gondolin/guest/wire"
)

// RehearsalName is this program's argv[0] as the rehearsal.
const RehearsalName = "rehearsal"

// rehearsal is a second agent in a template that runs one command as soon as a clone wakes
// up. Under translation half of what a clone's first command costs is that nothing of its way has been translated; what
// is translated for one processor is there for all, and the others have nothing to do while the host
// and the agent greet each other. It has the agent's own binary: translated code is known by where it lies in memory.
type rehearsal struct{ cue *os.File }

// prepareRehearsal starts one, which waits for its cue. Nil when it is of no use.
func prepareRehearsal() *rehearsal {
	var cpus unix.CPUSet
	if !near.Wanted() || unix.SchedGetaffinity(0, &cpus) != nil || cpus.Count() < 2 {
		return nil
	}
	cue, ours, err := os.Pipe()
	if err != nil {
		return nil
	}
	defer cue.Close()
	cmd := exec.Cmd{Path: "/proc/self/exe", Args: []string{RehearsalName}, Env: os.Environ(), Stdin: cue}
	if cmd.Start() != nil {
		ours.Close()
		return nil
	}
	go func() { _ = cmd.Wait() }()
	return &rehearsal{cue: ours}
}

// begin gives the cue. Only the first does something.
func (r *rehearsal) begin() {
	if r == nil || r.cue == nil {
		return
	}
	_, _ = r.cue.Write([]byte{byte(near.Processor())})
	r.cue.Close()
	r.cue = nil
}

// Rehearse is the rehearsal's main function. The cue names the processor that is the agent's.
func Rehearse() {
	_ = os.WriteFile("/proc/self/comm", []byte(RehearsalName), 0)
	var cue [1]byte
	if n, err := unix.Read(0, cue[:]); n != 1 || err != nil {
		return
	}
	near.Avoid(int(cue[0]))
	groups := cgroups{prefix: RehearsalName}
	if p, werr := spawn(&wire.Start{Argv: []string{"true"}}, &groups); werr == nil {
		<-p.done
	}
	groups.remove()
}
