package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/renameio/v2"
)

// FindBinary returns the path of QEMU for this machine's architecture; name
// overrides it.
func FindBinary(name string) (string, error) {
	if name == "" {
		name = map[string]string{"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}[runtime.GOARCH]
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("QEMU not found (%s): install it (Debian, Ubuntu: apt-get install qemu-system-x86; macOS: brew install qemu) or set qemu.binary to its path", name)
	}
	return path, nil
}

// Version returns the first line of what the binary says of itself.
func Version(ctx context.Context, binary string) (string, error) {
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("asking %s for its version: %w", binary, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line, nil
}

// Verdict is what is known of an accelerator.
type Verdict struct {
	Works  bool   `json:"works"`
	Reason string `json:"reason,omitempty"` // why not
}

// Verdicts remembers which accelerators work, in a file, for one boot of the
// host and one QEMU binary. The zero Verdict of an unknown accelerator is not
// among them.
type Verdicts struct {
	path string
	data verdictFile
}

type verdictFile struct {
	BootID   string                  `json:"boot_id"`
	QEMU     string                  `json:"qemu"`
	Verdicts map[Accelerator]Verdict `json:"verdicts"`
}

// LoadVerdicts reads the verdicts for a QEMU (its path and version). A missing,
// damaged or outdated file is an empty one.
func LoadVerdicts(dir, qemu string) *Verdicts {
	v := &Verdicts{path: filepath.Join(dir, "accelerators.json")}
	if b, err := os.ReadFile(v.path); err == nil {
		_ = json.Unmarshal(b, &v.data)
	}
	if now := bootID(); v.data.BootID != now || now == "" || v.data.QEMU != qemu {
		v.data = verdictFile{BootID: now, QEMU: qemu}
	}
	if v.data.Verdicts == nil {
		v.data.Verdicts = map[Accelerator]Verdict{}
	}
	return v
}

// Get returns the verdict on an accelerator, if there is one.
func (v *Verdicts) Get(a Accelerator) (Verdict, bool) {
	verdict, ok := v.data.Verdicts[a]
	return verdict, ok
}

// Set records a verdict and saves the file. That it cannot be saved costs the
// next start some seconds and nothing else.
func (v *Verdicts) Set(a Accelerator, verdict Verdict) error {
	v.data.Verdicts[a] = verdict
	b, err := json.MarshalIndent(v.data, "", "  ")
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(v.path, b, 0o600); err != nil {
		return fmt.Errorf("saving the verdict on %s: %w", a, err)
	}
	return nil
}

// Candidates returns the accelerators to try, best first. For "auto" that is
// the system's own unless it cannot be used or did not work before, and then TCG; reason
// says why the system's own is left out.
func Candidates(request string, v *Verdicts) (list []Accelerator, reason string, err error) {
	switch a := Accelerator(request); a {
	case KVM, HVF, TCG:
		return []Accelerator{a}, "", nil
	case "", "auto":
	default:
		return nil, "", fmt.Errorf("unknown accelerator %q: use auto, kvm, hvf or tcg", request)
	}
	own, err := native()
	if err != nil {
		return []Accelerator{TCG}, err.Error(), nil
	}
	if verdict, ok := v.Get(own); ok && !verdict.Works {
		return []Accelerator{TCG}, verdict.Reason, nil
	}
	return []Accelerator{own, TCG}, "", nil
}

// native returns the system's accelerator if it looks usable.
func native() (Accelerator, error) {
	switch runtime.GOOS {
	case "darwin":
		return HVF, nil
	case "linux":
		f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return "", errors.New("there is no /dev/kvm: virtualisation is off in the firmware, or this is a virtual machine without nesting")
		case errors.Is(err, os.ErrPermission):
			return "", errors.New("/dev/kvm is closed to this user: add the user to the group kvm and log in again")
		case err != nil:
			return "", fmt.Errorf("/dev/kvm cannot be opened: %w", err)
		}
		f.Close()
		return KVM, nil
	}
	return "", errors.New("no accelerator is known for " + runtime.GOOS)
}
