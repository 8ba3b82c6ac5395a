// Package sandbox runs commands and works on files in virtual machines of their
// own: it is the library's front door.
//
//	host, err := sandbox.NewHost(ctx, sandbox.HostOptions{})
//	defer host.Close()
//	s, err := host.Create(ctx, sandbox.Options{Image: image})
//	exit, err := s.Run(ctx, sandbox.Command{Shell: "uname -a", Stdout: os.Stdout})
//
// # Concepts
//
// A Host owns what sessions share: directories, the choice of accelerator, the
// maximum of sessions. A Session is one machine with a root file system of its
// own that is thrown away with it. A process belongs to the machine: it lives
// on when nobody watches it, until it ends, is stopped, or the session closes.
//
// A host that registers its sessions (HostOptions.Register) shows them to the other programs
// of its user: List finds them, and Attach gives an Attached, whose commands and files
// are used as those of the Session. Policy and mounts stay with the Session. A command ends with
// the program that started it, unless it is a job or was left with Process.Detach.
//
// Session.Fork makes copies of a running session, and Session.Snapshot keeps one in a
// directory for Host.Restore. Both go on where the session stood, processes included.
//
// # Errors
//
// A command that ran and failed is not an error: see Exit. Errors that callers
// branch on are the Err values, to be compared with errors.Is; a failure on a
// guest path is a *FileError. A session whose machine died fails every call
// with ErrClosed, the cause and the last lines of the console.
//
// # Contexts
//
// The context given to Start or Run governs the process: when it ends, the
// process group gets TERM, and after Command.Grace everything that the process
// started gets KILL. Other calls end with their context and leave nothing behind.
//
// # Trust
//
// The guest is hostile. What comes from it is bounded in size and number and
// never names anything on the host; a breach of the protocol ends its session
// and no other.
//
// # Goroutines
//
// Each session has one goroutine that watches its machine and connection; each
// process that is watched has one that moves its output, and one that feeds its input. A
// registered session has one that lets programs in, one for each of these, and one or two
// for each of their requests. Session.Close, Attached.Close and Host.Close end and wait for all of them.
package sandbox
