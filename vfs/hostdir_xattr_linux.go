package vfs

import (
	"context"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// userXattr reports whether a guest may use an attribute. Of the other name spaces
// security.* gives programs capabilities and labels, trusted.* belongs to the host's
// overlays, and system.* to its access lists.
func userXattr(name string) bool {
	return strings.HasPrefix(name, "user.") && len(name) > len("user.") && !strings.Contains(name, "\x00")
}

// onXattr runs call on the node's path if name is one that a guest may use.
func (n *hostNode) onXattr(name string, call func(path string) error) error {
	if !userXattr(name) {
		return syscall.ENOTSUP
	}
	fd, err := n.use()
	if err != nil {
		return err
	}
	defer n.done()
	return again(func() error { return call(procPath(fd)) })
}

func (n *hostNode) GetXattr(_ context.Context, name string) ([]byte, error) {
	var value []byte
	err := n.onXattr(name, func(path string) (err error) {
		value, err = sized(func(buf []byte) (int, error) { return unix.Getxattr(path, name, buf) })
		return err
	})
	return value, err
}

func (n *hostNode) SetXattr(_ context.Context, name string, value []byte, flags int) error {
	return n.onXattr(name, func(path string) error { return unix.Setxattr(path, name, value, flags) })
}

func (n *hostNode) RemoveXattr(_ context.Context, name string) error {
	return n.onXattr(name, func(path string) error { return unix.Removexattr(path, name) })
}

func (n *hostNode) ListXattr(context.Context) ([]string, error) {
	fd, err := n.use()
	if err != nil {
		return nil, err
	}
	defer n.done()
	list, err := sized(func(buf []byte) (int, error) { return unix.Listxattr(procPath(fd), buf) })
	if err != nil {
		return nil, err
	}
	var names []string
	for name := range strings.SplitSeq(string(list), "\x00") {
		if userXattr(name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// sized calls get for the size, then for the value, and again should it have grown between.
func sized(get func([]byte) (int, error)) ([]byte, error) {
	for {
		size, err := get(nil)
		if err != nil || size == 0 {
			return nil, err
		}
		buf := make([]byte, size)
		size, err = get(buf)
		if err == syscall.ERANGE {
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:size], nil
	}
}
