// Package ingress is the way into a machine for HTTP: a gateway on the host whose requests go
// to servers in the guest. It is no port forward. Whatever enters or leaves is a request or an answer that this
// package has read: HTTP/1.1 and HTTP/2, with streaming in both directions, server-sent events,
// WebSockets and gRPC.
//
// # A request's walk
//
//	listener -> Gateway.ServeHTTP -> who asks (host, origin, token) -> route -> OnRequest -> guest -> OnResponse
//
// A request that goes nowhere is answered by the gateway itself, with the header Gondolin-Ingress
// and a page that says what to do: HTML for browsers, plain text for everybody else.
//
// # Routes
//
// A [Route] leads the paths below its prefix to a port of the guest; the longest prefix wins.
// They are the host's, or the guest's own, in the format of [ParseRoutes].
//
// # Who may ask
//
// A gateway without a token is for the host's own user: it belongs on a loopback address, and a
// request must name that address, localhost, or one of Options.Hosts, so that no page of the web can
// have its own name resolve to it. The origin of a WebSocket, and of whatever changes something, must be
// one of these too. A gateway with a token wants it in the first segment of the path (/~TOKEN/...), once:
// browsers get a cookie for it. They send it to other ports of that host too, and so no gateway passes any
// of these cookies on, in either direction.
//
// # Bounds
//
// Connections, header sizes, informational answers and routes are bounded; bodies are streamed, so that a slow reader slows
// its own sender and takes no memory. What comes from the guest is an answer on one request: at worst that fails.
//
// # Goroutines
//
// Serve owns those of net/http. Close ends the connections and waits for their requests.
package ingress
