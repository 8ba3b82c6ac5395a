package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// migrationTimeout bounds saving and loading a machine.
const migrationTimeout = 2 * time.Minute

// capability is one of QEMU's MigrationCapability.
type capability struct {
	Capability string `json:"capability"`
	State      bool   `json:"state"`
}

// ignoreShared leaves memory out of the state that is a file both sides have.
func (vm *VM) ignoreShared() error {
	return vm.qmp.execute("migrate-set-capabilities", map[string]any{
		"capabilities": []capability{{"x-ignore-shared", true}},
	}, nil)
}

// Save stops the machine and writes its state to a file: without its memory if
// that is MemoryShared, which then holds the rest. The machine stands still afterwards.
func (vm *VM) Save(ctx context.Context, state *os.File, shared bool) error {
	if err := vm.Stop(); err != nil {
		return err
	}
	if shared {
		if err := vm.ignoreShared(); err != nil {
			return err
		}
	}
	// As fast as it goes: the default is made for a network.
	if err := vm.qmp.execute("migrate-set-parameters", map[string]any{"max-bandwidth": 16 << 30}, nil); err != nil {
		return err
	}
	if err := vm.qmp.executeWith("getfd", map[string]string{"fdname": "state"}, nil, state); err != nil {
		return err
	}
	if err := vm.qmp.execute("migrate", map[string]string{"uri": "fd:state"}, nil); err != nil {
		return err
	}
	return vm.migrated(ctx)
}

// load takes the state of Options.State. The machine stands still afterwards.
func (vm *VM) load(ctx context.Context, c *Config) error {
	if c.Memory == MemoryClone {
		if err := vm.ignoreShared(); err != nil {
			return err
		}
	}
	if err := vm.qmp.execute("migrate-incoming", map[string]string{"uri": fmt.Sprintf("fd:%d", c.fdState())}, nil); err != nil {
		return err
	}
	return vm.migrated(ctx)
}

// migrated waits until a migration has ended. It is asked for, since its events
// may come before the command's answer.
func (vm *VM) migrated(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, migrationTimeout, fmt.Errorf("QEMU did not finish within %v", migrationTimeout))
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		var info struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := vm.qmp.execute("query-migrate", nil, &info); err != nil {
			return err
		}
		switch info.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return errors.New("migration " + info.Status + ": " + info.Error)
		}
		select {
		case <-tick.C:
		case <-vm.done:
			return vm.exit
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Stop makes the machine stand still.
func (vm *VM) Stop() error { return vm.qmp.execute("stop", nil, nil) }

// Continue lets a machine that stands still go on.
func (vm *VM) Continue() error { return vm.qmp.execute("cont", nil, nil) }
