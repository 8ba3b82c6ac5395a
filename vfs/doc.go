// Package vfs is the guest's file server: providers of files, wrappers around them,
// and the server that shows them to the guest's kernel.
//
// # Parts
//
// A provider is a tree of Nodes (see Node, File, Dir): HostDir for a directory of the
// host, NewMemory for files in memory, FromFS for any fs.FS, and whatever a caller writes.
// Wrappers take a Node and give one: ReadOnly, Protect, Shadow, Hooks, Quota. A Server
// puts each at a name below the root of one FUSE connection; the guest (package
// guest/sandboxfs) binds these directories to where they belong.
//
// # Protocol
//
// A connection begins as package guest/fsport says, and then carries FUSE frames as
// the guest's kernel makes them. The server checks each frame before anything else sees
// it, lets go-fuse decode it, and calls Nodes. A FUSE_INIT begins a new world: all that
// was known and open before is let go of. Locks of files (flock, fcntl) are the guest
// kernel's own matter, as there is one guest to a mount.
//
// # Trust
//
// The guest is hostile and speaks to the port directly. It can make the server hold:
//
//	nodes      Options.MaxNodes, 131,072, about 450 bytes each and what the provider takes;
//	           beyond it ENFILE. Kernels forget late, so above three quarters
//	           the server asks for it by invalidating names of files.
//	files      Options.MaxFiles, 16,384, and directories, Options.MaxDirs, 1,024; ENFILE
//	requests   Options.MaxRequests, 1,024, of which Options.MaxWorkers, 64, run; their
//	           memory, replies included, is Options.MaxBytes, 32 MiB. Beyond it
//	           the port is not read until one has ended.
//	changes    4,096 that wait to be told; more are dropped
//
// What no kernel sends is refused with an errno, or ends the connection with
// ErrProtocol where it shows that frames are out of step: absurd lengths, a request
// before FUSE_INIT, two requests of one number. Names are names (see Node). Node ids
// and handles are given once, never again, and a handle is good for its node and
// kind only: ESTALE and EBADF else. Links and renames between mounts fail with EXDEV,
// devices with EPERM. IOCTL and POLL do not exist. A provider's panic is EIO for the
// request; five a connection are logged. A guest that does not read replies for
// Options.WriteTimeout loses its connection.
//
// Caller says which of the guest's users asks; the guest's kernel checks permissions
// (mount option default_permissions), and to a hostile guest they mean nothing.
//
// # Caching
//
// The guest believes attributes and names for Mount.Timeout, a second, so that what
// changes on the host shows after that at the latest. Opening a file compares it with
// what the guest was told last, and drops the guest's cached content if it differs. A root
// that is a Watcher has changes told at once, and while it tells of every change the
// timeouts are ten seconds: what the guest did itself it need not ask for. The reply to a request that
// changed a file or directory goes behind a note with its attributes (fsport.Note), for the same
// time, since the kernel forgets them and asks. There is no writeback cache: each
// write reaches the provider before write(2) returns, and O_APPEND appends to what the
// host wrote meanwhile. Mount.Private turns the timeouts into an hour for files that nobody
// else changes.
//
// # Cancelling
//
// The context of a call ends when Serve's does, or half a second after the guest
// interrupted the request: programs that catch signals do not expect EINTR from files, so
// what ends soon by itself may do so.
//
// # Ownership
//
// Serve owns every goroutine that it starts, and each Watch; all have ended when it
// returns. A Node is released once for each time that a provider returned it; a File and a
// Dir are closed once, after the last call on them. Roots stay their maker's.
//
// # Systems
//
// Serve needs a Linux host: go-fuse has the messages as the host's own kernel has
// them. Elsewhere it returns an error; providers work.
package vfs
