package policy

import "fmt"

// Possible says what may come of a connection of which only host and port are
// known, and perhaps the protocol: it is asked before a TCP connection is
// accepted, again when its first bytes have told the protocol, and while
// policies change. Without protocols all but DNS are meant; TLS that has been
// recognised is HTTPS and WSS.
//
// The verdict is Deny if nothing can be allowed: reset the connection, the
// decision says why. It is Allow or Ask if that is what Decide will say for all of
// the protocols, whatever the request, and Undecided if it depends: go on, and
// call Decide for each request. Protocols are those that are not denied.
// An address that a name resolves to is judged by Decide alone.
func (p *Policy) Possible(host string, port uint16, protos ...Protocol) Decision {
	if len(protos) == 0 {
		protos = []Protocol{HTTP, HTTPS, WS, WSS, SSH, TCP}
	}
	var sum Decision
	for i, proto := range protos {
		d := p.possible(host, port, proto)
		switch {
		case d.Verdict == Deny && sum.Verdict != Deny:
			sum.Verdict = Undecided
		case d.Verdict != Deny:
			open := append(sum.Protocols, proto)
			if i > 0 && (sum.Verdict != d.Verdict) {
				d.Verdict = Undecided
			}
			sum = d
			sum.Protocols = open
		case i == 0 || sum.Verdict == Deny && sum.Rule == "" && (d.Rule != "" || sum.Nearest == "" && d.Nearest != ""):
			sum = d // the refusal that says most
		}
	}
	return sum
}

func (p *Policy) possible(host string, port uint16, proto Protocol) Decision {
	h, err := ParseHost(host)
	if err != nil {
		return Decision{Reason: err.Error(), Remedy: "name a host"}
	}
	q := &query{Request: Request{Protocol: proto, Host: host, Port: port, Addr: h.addr}, host: h}
	if proto == DNS {
		return p.decideName(q)
	}
	var maybe, shut *rule
	passed := false
	for _, r := range p.rules {
		if !r.matchProtocol(q) || !r.matchHost(q) || !r.matchPort(q) {
			continue
		}
		_, closed := r.closed(q)
		lets := r.Action != ActionDeny && !closed
		if !r.conditional() {
			if !lets && maybe != nil {
				break
			}
			d := r.decide(q)
			if passed && d.Verdict != Deny {
				d.Verdict = Undecided
			}
			return d
		}
		passed = true
		switch {
		case lets && maybe == nil:
			maybe = r
		case closed && r.Action != ActionDeny && shut == nil:
			shut = r
		}
	}
	switch {
	case maybe == nil && shut != nil:
		return shut.decide(q)
	case maybe == nil:
		return p.explain(q)
	}
	return Decision{
		Verdict: Undecided, Rule: maybe.Name, Limits: maybe.limits,
		Reason: fmt.Sprintf("the rule %s may allow %s, depending on the request", quote(maybe.Name), q.describe()),
	}
}
