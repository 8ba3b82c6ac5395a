package netguard

import (
	"context"
	"errors"
	"net/netip"
	"strconv"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// decide judges what the channel is for, with the address of the server once it is known.
func (ch *sshChannel) decide(addr netip.Addr) policy.Decision {
	f := ch.c.flow
	return ch.c.g.Policy().Decide(policy.Request{Protocol: policy.SSH, Host: f.Host(), Port: f.Dst.Port(), Addr: addr, SSH: ch.call})
}

// granted says whether a decision lets the channel go on: what a human has allowed stays
// allowed under the rule that had them asked.
func (ch *sshChannel) granted(d policy.Decision) bool {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return d.Allowed() || d.Verdict == policy.Ask && ch.asked && ch.rule == d.Rule
}

// admit decides whether the channel may do what it is for, and records it. Nothing has
// left the host before.
func (ch *sshChannel) admit() (policy.Decision, *refusal) {
	g := ch.c.g
	d, ok := g.ask(ch.ctx, ch.decide(netip.Addr{}))
	if !ok {
		return d, denied(d)
	}
	ch.mu.Lock()
	ch.judged, ch.asked, ch.rule = true, d.Verdict == policy.Ask, d.Rule
	ch.mu.Unlock()
	// Once more, since the human may have taken their time: a new policy is read here, or it
	// finds the channel judged.
	if now := ch.decide(netip.Addr{}); !ch.granted(now) {
		return now, denied(now)
	}
	if err := g.limiter.Request(d); err != nil {
		return d, limited(err)
	}
	e := ch.event()
	e.Verdict, e.Rule, e.Reason = "allow", d.Rule, d.Reason
	if err := g.recorder.Record(e); err != nil {
		g.o.Log.Error("recording an SSH request; it is refused", "error", err)
		return d, &refusal{rule: "audit", reason: "the decision cannot be recorded", remedy: "the operator has to look after the audit record"}
	}
	return d, nil
}

// rejudge ends the channel if the policy in force does not allow it.
func (ch *sshChannel) rejudge() {
	ch.mu.Lock()
	judged := ch.judged
	ch.mu.Unlock()
	if !judged {
		return
	}
	var addr netip.Addr
	if up := ch.c.upstream(); up != nil {
		addr = up.addr
	}
	if d := ch.decide(addr); !ch.granted(d) {
		d.Reason = "the policy has changed: " + d.Reason
		ch.end(denied(d))
	}
}

// event is the beginning of an entry about the channel.
func (ch *sshChannel) event() Event {
	e := ch.c.event()
	e.Method, e.Command = string(ch.call.Kind), ch.call.Command
	return e
}

// interrupted is why something could not be finished.
func interrupted(ctx context.Context) *refusal {
	var r *refusal
	if errors.As(context.Cause(ctx), &r) {
		return r
	}
	reason := "it was broken off"
	if cause := context.Cause(ctx); cause != nil {
		reason += ": " + cause.Error()
	}
	return &refusal{rule: "upstream", failed: true, reason: reason}
}

// sshMessage is what the guest reads of a refusal.
func sshMessage(r *refusal) string {
	text := "gondolin: refused: "
	if r.failed {
		text = "gondolin: failed: "
	}
	text += oneLineLong(r.reason)
	if r.named {
		text += " (rule " + strconv.Quote(r.rule) + ")"
	}
	if r.remedy != "" {
		text += "; " + oneLineLong(r.remedy)
	}
	return text
}

// oneLineLong keeps a message of ours on one line.
func oneLineLong(s string) string {
	const most = 2000
	if len(s) > most {
		s = s[:most] + "..."
	}
	return s
}

func quoted(s string) string { return strconv.Quote(clipped(s)) }
