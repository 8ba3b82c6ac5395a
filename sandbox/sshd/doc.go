// Package sshd is the way into a machine for SSH: a server on the host that runs what clients ask
// for in the guest, through the same requests as every other command.
//
// The protocol ends here and not in the guest. So the user's client never reads a byte of the
// protocol that a hostile guest has made; nothing in an image is needed, not even for SFTP; no cipher runs
// under translation; and commands have the limits, the environment and the end of any other command.
//
// # What is offered
//
// Sessions with a shell, a command or the subsystem sftp, with or without a terminal, environment
// variables, signals, window sizes; as whichever user of the guest the client names. The only key that may
// log in is Options.Key. There are no passwords, agents, X11 or reverse forwards; forwards to the guest's
// loopback only with Options.Forward, and to nowhere else.
//
// # Bounds
//
// Connections, those that have not logged in, the time for that, channels of a connection, variables
// and their size are bounded. A client that reads slowly stops its own command only: SSH's window, the stream
// of the control port and the spool in the guest follow one another.
//
// # Goroutines
//
// Serve has one goroutine for each connection, which has one for each channel. Close ends the
// connections and waits for all of them; the commands that they run end with their connection.
package sshd
