//go:build linux

// Package sandboxfs is the guest's end of the file port: it mounts one FUSE file
// system and carries the kernel's requests to the host and the host's replies back.
// What files there are, and who may do what, is decided on the host (package vfs) and by
// the guest's kernel; two questions of the kernel are answered here, see package fsport.
//
// # Place
//
// pid1 starts it as a process of its own, by argv[0] "sandboxfs", in the initramfs.
// It mounts at Dir, which lies in /run so that the mount comes along when sandboxd moves
// /run into the session's root. There sandboxd calls Bind, which puts each of the
// session's mounts at its path. A session without mounts has no file system here either:
// it is mounted when a host begins (package fsport).
//
// # A lost port
//
// When the host closes the port, or begins anew without that this side saw the
// close, the FUSE connection is aborted: a program that waits in it gets ENOTCONN
// or ECONNABORTED instead of waiting for ever, and so does each later use. Then the
// next host is waited for, and Bind called again replaces the dead mounts.
//
// # Threads
//
// One goroutine carries requests out, one carries replies in, one writes
// notifications: the kernel lets the writer of an invalidation wait for a lock that
// a request holds, whose reply must not have to wait behind it. The owner of all
// three is serve, which waits for them before it answers the next host.
package sandboxfs
