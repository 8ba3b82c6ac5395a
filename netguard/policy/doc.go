// Package policy decides what the guest may reach. It is pure: [Policy.Decide] looks
// at a [Request] and answers with a [Decision] that names the rule, the reason,
// the rule that would come nearest to allowing it, and a remedy. The pipeline, the
// policy tool and `policy explain` all call it.
//
// # Rules
//
// A [Spec] is an ordered list of rules; the first that matches decides, and
// where none does the answer is Deny. An empty policy therefore allows nothing, and a
// rule without hosts is a mistake, not a rule for all. A rule matches if all its
// conditions hold. One that is absent means:
//
//	protocols  allow, ask: http and https, with WebSockets unless there are methods;
//	           ssh alone if there is an ssh section. deny: every protocol that the
//	           other conditions can be about
//	ports      allow, ask: the protocol's standard port. deny: every port
//	methods    all but CONNECT, which is always refused
//	paths      all
//	ssh        deny only: everything
//	when       true
//
// Hosts are names, "*.example.com" (any depth, not example.com itself), "*",
// addresses and CIDR ranges. "*" of a rule that allows stands for names only, so
// that nobody gets around a denied name by its address.
//
// # Doubt
//
// A fact that can be read in several ways is read in all of them. A rule that
// allows must match each reading, a rule that denies or asks any: this goes for
// paths (percent-encoding, dot segments, "//", "\", ";x"), for the case of
// methods, paths and repositories, and for the address that a name leads to. The
// wildcards of an SSH command do not stand for characters with which a shell would
// start another command. A `when` that fails to evaluate is a refusal.
//
// `when` is a CEL expression over protocol, host, port, address, method, path (decoded),
// query (map of lists), headers (map, lower-case names), and for SSH kind, command,
// service, repository, user. Its length and its cost are bounded.
//
// # Stages
//
// A request is judged several times as more is known about it:
//
//  1. A name is looked up: Decide with [DNS]. It is allowed when any request to
//     the host could be.
//  2. A connection arrives, and its first bytes: [Policy.Possible]. Undecided
//     means go on and see.
//  3. An HTTP request or SSH channel request is complete: Decide, with no Addr.
//  4. The name has been resolved: Decide again for each address, with Addr, and
//     connect to that very address. A pooled connection is used only after Decide
//     has allowed the request with the address of that connection.
//
// Addresses that [Blocked] names are closed to every rule whose allow_addresses do
// not open them; cloud metadata only opens by its exact address.
//
// [Limits] come with each decision and are state, so a [Limiter] counts them.
//
// # Mistakes
//
// [Compile] refuses a Spec with an [*Error] that lists all mistakes with their keys;
// [Check] gives the same and warnings. Decide and Possible have no errors:
// what is malformed is denied, with the reason.
//
// A [Policy] is immutable; replacing it is the caller's one atomic store. The
// package starts no goroutine.
package policy
