// Package secret lets the guest use secrets that it never has. The guest holds a
// placeholder; the host puts the value into requests on their way out and takes it
// out of answers on their way in.
//
// # Values
//
// A [Value] prints as "[secret NAME]" under every verb and in every encoding. Values
// come from the host's environment, a file, a command or the OS keyring ([From]), and
// are fetched again after their lifetime by whoever needs one next; others wait
// for that one. A source that fails is left alone for a second; a value past its
// lifetime is not used. Values are text of 8 to 4096 bytes: replacing shorter ones would
// corrupt innocent answers.
//
// # Store and Set
//
// A process has one [Store], a session one [Set]. A set's placeholders are random,
// its secrets fixed. A secret is bound to hosts, and a binding opens nothing: whether a
// host is reached at all is the policy's decision, made before and without this package.
//
// # Out
//
// [Set.Inject] changes a request's head, [Set.RequestBody] its body. For a host that the
// secret is bound to, a placeholder that stands there as it was given is replaced: in
// header values and Basic credentials, and in query, path and body if the spec says so.
// Elsewhere in such a request it goes out as it is and is reported ([Kept]). For
// every other host, or unencrypted without plain_http, it is a [*LeakError], in
// whatever encoding it is found:
//
//	as it is; percent-encoded, JSON-escaped, or both, up to two layers in either order;
//	and in each of these in base64, standard or URL alphabet, at any alignment
//
// Other disguises (encryption, hexadecimal, base64 broken into lines, UTF-16) are not
// recognised, and need not be: a placeholder is worth nothing to whoever gets it.
//
// # In
//
// [Set.ResponseBody], [Set.ScrubHeader], [Set.ScrubText] and [Set.Scrubber] replace values by
// placeholders in the same encodings. Every value that the session may have used is
// looked for, the latest 64 of each secret, within 128 KiB of all. In base64 up to 4 bits of the first
// and the last byte remain, as they are part of characters that belong to the neighbours as
// well. Content codings are undone; compression within messages (gRPC,
// permessage-deflate, archives) is not, so the pipeline must not let it be
// negotiated for hosts that have a secret.
//
// Where value and placeholder are equally long, which is the default for values of 24 to
// 256 bytes, replacing keeps lengths (for what exactly: [Set.KeepsLength]).
//
// # Streams
//
// Everything streams through a [Filter] in bounded memory, finds what is split in any
// way, and holds back nothing but the possible beginning of a secret.
//
// # Errors
//
// No error holds a value or what a source printed. [*Error] lists the mistakes of the
// configuration; [*LeakError] is the one that callers tell from others, because it is a
// refusal to be recorded. Any other error of Inject or RequestBody is that a value cannot be
// had: the request fails.
//
// The package starts no goroutine of its own.
package secret
