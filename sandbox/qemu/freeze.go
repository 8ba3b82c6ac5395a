package qemu

import (
	"errors"
	"fmt"
	"os"
)

// SaveDevices writes the state of a machine that stands still to a file, without its memory,
// for Options.State of a MemoryClone. Unlike after Save the machine may go on: no migration
// has begun, and it takes a few milliseconds. The command was made for Xen, whose memory is elsewhere as well.
//
// What is left out with the memory are the copies of ROMs that the firmware ran from. A
// Linux kernel that has started uses none of them.
func (vm *VM) SaveDevices(state *os.File) error {
	if err := vm.ignoreShared(); err != nil { // as the machine that loads it will have it
		return err
	}
	// A set of descriptors gives one out only in the mode in which it was opened.
	out, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", state.Fd()), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("opening the file for the machine's state: %w", err)
	}
	defer out.Close()
	var set struct {
		ID int `json:"fdset-id"`
	}
	if err := vm.qmp.executeWith("add-fd", map[string]any{}, &set, out); err != nil {
		return err
	}
	err = vm.qmp.execute("xen-save-devices-state", map[string]any{"filename": fmt.Sprintf("/dev/fdset/%d", set.ID), "live": false}, nil)
	if err = errors.Join(err, vm.qmp.execute("remove-fd", map[string]int{"fdset-id": set.ID}, nil)); err != nil {
		return err
	}
	return endState(state)
}

// endState adds the empty description of the format that a state ends with after Save, and
// without which the machine that loads it complains on its console.
func endState(state *os.File) error {
	st, err := state.Stat()
	if err == nil {
		_, err = state.WriteAt([]byte{6, 0, 0, 0, 0}, st.Size()) // a section of type VMDESCRIPTION and no length
	}
	if err != nil {
		return fmt.Errorf("ending the machine's state: %w", err)
	}
	return nil
}

// isBare reports whether a machine's state begins with its devices and not with a
// configuration section (QEMU's docs/devel/migration.rst): old versions save devices alone so,
// and must be told to expect it.
func isBare(state *os.File) bool {
	const header, configuration = 8, 7 // bytes of magic and version; type of the section
	var b [header + 1]byte
	_, err := state.ReadAt(b[:], 0)
	return err == nil && b[header] != configuration
}
