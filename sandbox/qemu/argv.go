package qemu

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// Accelerator is how QEMU runs the guest's instructions.
type Accelerator string

// The accelerators.
const (
	KVM Accelerator = "kvm" // Linux
	HVF Accelerator = "hvf" // macOS
	TCG Accelerator = "tcg" // everywhere: translation
)

// Config is what distinguishes one machine from another.
type Config struct {
	Name        string // of the machine, for whoever lists processes
	Binary      string // path of qemu-system-…; FindBinary finds it
	Arch        string // "amd64" or "arm64" as in GOARCH; default this machine's
	Accelerator Accelerator
	CPUs        int
	MemoryMiB   int
	Kernel      string // paths; opened by Start and handed over as descriptors
	Initramfs   string
	RootDisk    string
	Scratch     bool   // a second, writable disk; see Options.Scratch
	Memory      Memory // where the machine's memory is
	Net         Net    // the network card
	Verbose     bool   // let the kernel talk from its first moment on
	Cmdline     string // appended to the kernel's command line

	bare bool // Options.State has no configuration section: see isBare
}

// Net is the machine's network card. What is sent leaves through VM.Net.
type Net struct {
	MAC string
	MTU int // of the link; the guest's driver takes it over
}

// Memory says where a machine's memory is and how its life begins.
type Memory string

// The kinds of memory.
const (
	MemoryOwn    Memory = ""       // QEMU's own; the machine boots
	MemoryShared Memory = "shared" // Options.Memory itself; the machine boots
	// MemoryClone is a private copy of Options.Memory, made page by page as the machine writes.
	// The machine is loaded from Options.State and stands still until Continue.
	MemoryClone Memory = "clone"
	// MemoryLoad is QEMU's own, and the machine is loaded from Options.State with its memory.
	MemoryLoad Memory = "load"
)

func (m Memory) loaded() bool { return m == MemoryClone || m == MemoryLoad }
func (m Memory) file() bool   { return m == MemoryShared || m == MemoryClone }

// Descriptors that Start hands to QEMU, in this order from 3 on; what a machine
// does not have takes no number.
const (
	fdKernel = 3 + iota
	fdInitramfs
	fdRoot
	fdQMP
	fdPorts // one each of Ports
	fdNet   = fdPorts + numPorts
	fdMore  = fdNet + 1
)

func (c *Config) fdScratch() int { return fdMore }

func (c *Config) fdMemory() int {
	if c.Scratch {
		return fdMore + 1
	}
	return fdMore
}

func (c *Config) fdState() int {
	if c.Memory.file() {
		return c.fdMemory() + 1
	}
	return c.fdMemory()
}

const numPorts = 3

// Ports are the serial ports of every machine, in the order of their numbers.
var Ports = [numPorts]string{wire.PortControl, wire.PortFS, wire.PortIngress}

// Argv returns QEMU's arguments without the program's name.
func (c *Config) Argv() []string {
	args := []string{
		"-name", c.Name,
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-machine", c.machine(),
		"-cpu", c.cpu(),
		"-smp", strconv.Itoa(c.CPUs),
		"-m", strconv.Itoa(c.MemoryMiB),
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-kernel", fdPath(fdKernel),
		"-initrd", fdPath(fdInitramfs),
		"-append", c.cmdline(),
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fdQMP),
		"-mon", "chardev=qmp,mode=control",
		"-chardev", "stdio,id=console,signal=off",
		"-serial", "chardev:console",
	}
	args = append(args, disk("root", fdRoot, 1, "on", "")...)
	if c.Scratch {
		// Nothing on this disk outlives the session: no flush is worth its time.
		args = append(args, disk("scratch", c.fdScratch(), 2, "off", ",cache.no-flush=on,discard=unmap")...)
	}
	serial := fmt.Sprintf("virtio-serial-pci,max_ports=%d", numPorts+1)
	if c.Accelerator == TCG {
		// The processor's thread then hands a frame to the socket itself instead of waking
		// another for it: streams are half as fast again, requests to mounts a third faster.
		serial += ",ioeventfd=off"
	}
	args = append(args, "-device", serial)
	for i, name := range Ports {
		args = append(args,
			"-chardev", fmt.Sprintf("socket,id=port%d,fd=%d,server=on,wait=off", i, fdPorts+i),
			"-device", fmt.Sprintf("virtserialport,chardev=port%d,nr=%d,name=%s", i, i+1, name))
	}
	args = append(args,
		"-netdev", fmt.Sprintf("stream,id=net,server=off,addr.type=fd,addr.str=%d", fdNet),
		"-device", fmt.Sprintf("virtio-net-pci,netdev=net,mac=%s,host_mtu=%d", c.Net.MAC, c.Net.MTU))
	if c.Memory.file() {
		share := "on"
		if c.Memory == MemoryClone {
			share = "off"
		}
		args = append(args, "-object", fmt.Sprintf("memory-backend-file,id=memory,size=%dM,mem-path=%s,share=%s", c.MemoryMiB, fdPath(c.fdMemory()), share))
	}
	if c.Memory.loaded() {
		args = append(args, "-incoming", "defer", "-S")
		if c.bare {
			args = append(args, "-global", "migration.send-configuration=off")
		}
	}
	return args
}

func (c *Config) arm() bool { return c.Arch == "arm64" || c.Arch == "" && runtime.GOARCH == "arm64" }

func (c *Config) machine() string {
	memory := ""
	if c.Memory.file() {
		memory = ",memory-backend=memory"
	}
	if c.arm() {
		return "virt,accel=" + string(c.Accelerator) + memory
	}
	// No legacy device that a Linux guest would have to probe for. (graphics=off would
	// make the firmware talk on the console: not a sign of the guest's life.)
	return "q35,accel=" + string(c.Accelerator) + ",usb=off,vmport=off,smbus=off,sata=off,hpet=off,i8042=off" + memory
}

// cpu returns the processor model. Under TCG an x86 does without ERMS and FSRM,
// which promise fast byte-wise string moves: kernel, glibc and Go then copy by bytes,
// and a translated "rep movsb" moves one byte an iteration. Half of the time of a stream was that.
// A fifth level of page tables makes each miss of the translated TLB dearer, and protection keys
// each switch between processes.
func (c *Config) cpu() string {
	if c.Accelerator == TCG && !c.arm() {
		return "max,-erms,-fsrm,-la57,-pku"
	}
	return "max"
}

func (c *Config) cmdline() string {
	console := "ttyS0"
	if c.arm() {
		console = "ttyAMA0"
	}
	words := []string{
		"console=" + console, "panic=-1", "reboot=t",
		// One tenant: the guest needs no wall against itself, and walls are dear under TCG.
		"mitigations=off", "audit=0", "tsc=reliable", "no_timer_check", "random.trust_cpu=on",
		"cryptomgr.notests", "rcupdate.rcu_expedited=1",
	}
	if c.Accelerator == TCG {
		// Translated code is found by its address: a program at another address each
		// time is translated each time. /bin/true takes 8 ms without randomization and 26 ms with it.
		words = append(words, "norandmaps", "randomize_kstack_offset=off", "init_on_alloc=0", "hardened_usercopy=off",
			// Of the security modules the one that programs use to confine themselves.
			"lsm=landlock", "nowatchdog",
			// The guest's agent brings up the other processors when it is ready; see near.Online.
			"maxcpus=1", wire.CmdlineNear)
		if !c.arm() {
			words = append(words,
				"noreplace-smp",  // or it would make itself one for one processor, and change all of that back
				"clearcpuid=112") // REP_GOOD: pages are cleared by words and not by "rep stosq"
		}
	}
	if c.Verbose {
		words = append(words, "earlycon", "earlyprintk="+console, "loglevel=7")
	} else {
		words = append(words, "quiet", "loglevel=3")
	}
	if c.Cmdline != "" {
		words = append(words, c.Cmdline)
	}
	return strings.Join(words, " ")
}

func disk(id string, fd, set int, readonly, extra string) []string {
	return []string{
		"-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, set),
		"-blockdev", fmt.Sprintf("driver=file,node-name=%s-file,filename=/dev/fdset/%d,read-only=%s,auto-read-only=off,locking=off%s", id, set, readonly, extra),
		"-blockdev", fmt.Sprintf("driver=raw,node-name=%s,file=%s-file,read-only=%s", id, id, readonly),
		"-device", fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s,werror=report,rerror=report", id, id),
	}
}

func fdPath(fd int) string { return fmt.Sprintf("/dev/fd/%d", fd) }
