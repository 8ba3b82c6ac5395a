// Package qemu runs one QEMU process as a virtual machine: it builds the
// argument list, starts and confines the process, speaks QMP to it, keeps the
// end of its console, and connects to its ports.
//
// # The machine
//
// Argv is a pure function of Config. The machine has virtio devices only: a
// read-only root disk, an optional scratch disk, and four serial ports
// (package wire); its console is a serial line whose last 64 KiB are kept.
//
// # Confinement
//
// QEMU is handed everything it needs as open descriptors: kernel, initramfs,
// disks, the QMP socket and listening sockets for the ports. It opens no path
// but its own firmware, so where the host program is root QEMU runs as a user
// id that exists for this one VM and owns nothing. Its seccomp filter
// (-sandbox) denies spawning, privileges, resource control and obsolete calls.
//
// # Ownership
//
// Start owns every resource until it returns; afterwards the VM does, and Close
// releases them and waits for the process and for the VM's goroutines. QEMU
// also dies with the host program, however that ends (PR_SET_PDEATHSIG).
//
// # Accelerators
//
// That /dev/kvm opens proves nothing: on some nested hosts it then never runs
// a kernel. Verdicts records what was seen to work, for this boot of the host and
// this QEMU. Who starts a VM with an accelerator without a verdict watches Alive.
package qemu
