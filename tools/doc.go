// Package tools is the MCP face of gondolin: typed arguments in, results out.
// An agent that plugs the server in gets a Linux machine of its own and tools
// to run commands and to read and write files in it.
//
// # Use
//
// [New] takes [Options] with the sandboxes to offer and gives a [Server].
// [Server.Serve] speaks MCP on a pair of streams until the input ends or the
// context does. Nothing but MCP messages is written to the output; everything
// that people should read goes to Options.Logger.
//
// The package knows sandboxes only through the interfaces [Sandboxes] and
// [Session], declared here. Sessions belong to whoever made the Sandboxes:
// the end of Serve closes none of them.
//
// # Sessions
//
// A call without the argument `session` works in the connection's default
// session. That one is made at the first call that needs it, once for all
// calls that wait for it, and independently of them: a call that is cancelled
// meanwhile wastes nothing. A failed creation is told to every call that
// waited and is tried anew by the next one. When the default session ends
// (age, idleness, a crash), the next call gets a fresh one and its result says
// what became of the old one.
//
// # Mounts and refusals
//
// What of the user's files a session sees is for Sandboxes to decide; Session.Mounts
// tells, and so do the instructions and the results of the tool session. With
// Options.Roots the client is asked for its roots, and a session is made with those known
// then: the first one waits for the answer, at most two seconds. Roots that change
// later reach the sessions made afterwards, and the model is told so once.
//
// What the host refused (Session.Denials) is told in the result of the exec during which
// it happened, and in the error of the file tool that it made fail: the rule, and what
// would help.
//
// # Network
//
// Options.Policy tells what sessions may reach: the tool policy and the instructions show it,
// and nothing here can change it. [Server.Ask] puts to the human what a rule leaves to them, by
// elicitation; see questions. What was answered is remembered as long as the human said, for one
// session; no answer and no way to ask are a no.
//
// # Exposing
//
// With Options.Expose the tool expose gives the user URLs for HTTP servers of a session. They are
// for the user of this computer alone; what their pages do is up to the guest, as with any page.
//
// # From a line to a result
//
//		client -> front -> mcp-go's stdio server -> gate -> check -> the tool -> fit -> client
//
//	  - front reads lines with a bound on their length, refuses what is no
//	    JSON-RPC message, keeps the table of calls under way and writes every
//	    message whole. It exists because mcp-go forgets a cancellation that
//	    overtakes its call in the queue, cancels 1 where "1" was meant, answers stray
//	    responses, reads lines of any length, and mixes server requests into other
//	    writes. Cancellations are therefore front's alone.
//	  - gate bounds the calls that run. Long ones (exec in the foreground,
//	    waiting for output, making sessions) and quick ones have separate places,
//	    and both together are fewer than mcp-go has workers. A call therefore
//	    never waits for another: it runs or is told that too many are under way.
//	  - check compares the arguments with the published schema and reports all
//	    mistakes at once, as a result that a model can correct itself from.
//	    mcp-go's own input validation would answer first and in its words, so it
//	    is off; a test holds both judgements equal.
//	  - fit keeps a result below 50,000 characters, text and structured content
//	    counted together, as a client shows them after decoding JSON (images
//	    apart). Both carry the output, because clients show one or the other.
//
// # Errors
//
// What a model can act on is a result with isError: wrong arguments, a missing
// file, a refusal, a timeout (with the output so far), a full machine, a panic
// in a tool. A command's non-zero exit is an ordinary result. JSON-RPC errors
// are left for messages that are no valid call at all.
//
// # Progress
//
// A client that sends a progressToken hears at most twice a second how long a
// call has taken and the last line that a command wrote. These notifications
// are written by front directly, so that none is lost or comes after the result.
// Nothing essential is in them.
//
// # Goroutines
//
// Serve owns the reader of the input, the writer of the output, the creation of
// the default session, the question for the client's roots and those to its user, and
// waits for all of them. Two system calls cannot be interrupted on every kind of file: a
// blocked read of the input and a blocked write to a client that reads no more.
// Serve closes such a stream when it can be closed and returns at the latest
// two seconds after its end began.
package tools
