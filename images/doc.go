// Package images turns a description into a guest image and keeps images in a store.
//
// # What an image is
//
// An image is a directory <store>/<id> that never changes:
//
//	kernel         what QEMU boots: a vmlinux with a PVH entry, or the distribution's bzImage
//	modules.cpio   initramfs with the kernel modules of a guest and the file lib/gondolin/modules/order
//	root.ext4      read-only root disk
//	manifest.json  what all this is, with a digest for every file ([Manifest])
//
// The id is a sha256 over the manifest without its time stamps and without its source, so two ways to
// the same bytes give the same image. The guest's agent is not part of it: package sandbox appends it to
// modules.cpio at start, and so an image does not age with gondolin. A root file system needs nothing of
// ours inside; mount points that it lacks are added, since the disk is read-only.
//
// # Building
//
// [Build] takes a [Spec]. Its [Source] is a list of Debian or Ubuntu packages, installed by the program
// mmdebstrap from the mirrors that this machine's apt uses, or an OCI image from a registry, a layout
// directory or an archive, or a plain directory or tar file. No container engine and, but for what
// mmdebstrap itself needs, no privilege is involved: every source becomes a tar stream, streams are laid
// over each other in memory with the contents in a spool file, and the result is written as ext4.
//
// Layers are not trusted. Path traversal, links that lead out of the image or nowhere, symlink loops,
// device nodes other than the standard ones (which are dropped, as the guest has a devtmpfs) and
// anything above [Limits] is refused, naming layer and entry. Nothing is ever created at a path that a
// layer names.
//
// The kernel comes from the distribution ([KernelSource] zero value): its package is downloaded and
// unpacked, not installed, and kept in the store for later builds. Without a network the newest kernel
// kept is used, and the build says so.
//
// A spec that was built before yields the same image again, unless [Spec].Force is set; that is how an
// image gets the distribution's updates. Builds of one spec by several processes happen once.
//
// # Store
//
// A [Store] may be used by any number of processes. Everything appears by rename, after fsync. [Store.Get]
// finds an image by name, id or prefix; [Image.Check] belongs before every boot and costs nothing when
// no file's size, times or inode moved since the last one; [Store.Verify] always hashes. Both name each
// damaged file ([DamagedError]). [Image.Use] keeps an image from [Store.Remove] and [Store.GC] for as long
// as a process wants, or lives.
//
// Locks are flocks in <store>/locks, on the work directories in <store>/tmp and on each image's manifest;
// the kernel drops them with their process, so nothing is ever left locked, and what a killed build left
// behind is recognised and removed by the next build or gc. Their order is: build of a spec, cache,
// kernel or blob, store.
//
// # Errors, output, goroutines
//
// Errors say what failed, on what, and what to do. [NotFoundError], [DamagedError] and [InUseError] are
// types because callers tell them apart. Progress goes to the [Progress] that the caller passes and
// nowhere else. Each goroutine is started and waited for within one function.
package images
