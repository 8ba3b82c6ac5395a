// Package ca is the certificate authority of one session: it vouches to the
// guest, and to nobody else, that netguard may speak for any server.
//
// # X.509
//
// [New] makes a root (ECDSA P-256) whose key exists in this process's memory
// only. The guest gets [CA.PEM] for its trust stores. [CA.Leaf] mints a
// certificate for one name or address when a client asks for it; one leaf key
// serves the whole session, so that a leaf costs one signature. Leaves are kept
// in a cache of bounded size, the longest unused goes first, and concurrent
// calls for one name sign once.
//
// # Clocks
//
// A guest's clock may be behind (a resumed snapshot) or ahead. Everything is
// valid from 48 hours before it was made. A leaf ends 7 days after that start,
// which is within every limit that clients have, and is minted anew one day
// before; the root lasts a year, because a session may be long and its key dies
// with it anyway.
//
// # SSH
//
// The same CA holds an SSH host authority (Ed25519). [CA.HostCertificate] is a
// signer with a host certificate for the names that the guest connects to;
// [CA.KnownHosts] is the line that makes the guest's ssh trust it unasked.
//
// # Errors
//
// Leaf and HostCertificate refuse what is no host name or address: the caller
// decides by policy first, so an error here is a refusal of a strange name. No
// error and no printed form of a CA contains key material.
//
// The package starts no goroutine. A CA is safe for concurrent use.
package ca
