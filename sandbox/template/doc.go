// Package template keeps memory templates: the memory and device state of a
// machine that has booted and announced itself, but was never told of a session.
// A session cloned from one starts where that machine stopped.
//
// # On disk
//
// A Store is a directory with one subdirectory a template, named by its key:
//
//	memory         the machine's memory, sparse
//	state          the device state, as QEMU's migration writes it
//	disk           the machine's writable disk, sparse, if it has one
//	manifest.json  sizes and SHA-256 digests of all
//
// The key is the digest of everything that can change a template, so that one
// is never used for another machine. A template is written beside its place,
// synced and renamed into it; a lock a key lets one process build it while others wait.
// The least recently used go first when there are more than the store may hold.
//
// # In memory
//
// Load reads a template into an anonymous file (memfd_create(2)), checks it
// against its digests, and seals it against writing (F_SEAL_WRITE): each clone
// maps it private, so that its pages are shared until they are written, and no
// clone, not even a QEMU that its guest has taken over, can change what
// another one reads. What does not match its digest is removed and reported as
// ErrDamaged; the caller builds anew.
//
// A template holds no secret, no mount and no session's data. It does hold the
// state of the guest's random number generator: whoever clones one must give
// each clone entropy before anything runs in it (package sandbox's handshake does).
//
// Linux only. Elsewhere New returns ErrUnsupported, and sessions boot.
package template
