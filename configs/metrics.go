package configs

import (
	"net/netip"
)

// checkListen looks at the form of an address to listen on. A name could come to mean
// something else.
func checkListen(v any, text string) string {
	if text == "" {
		return ""
	}
	a, err := netip.ParseAddrPort(v.(string))
	if err != nil || a.Addr().Zone() != "" {
		return quote(text) + " is no address and port: write it like 127.0.0.1:9464 or [::1]:9464"
	}
	return ""
}

// checkMetrics keeps the figures on this computer unless the operator says otherwise: who
// reads them sees what sessions do.
func (l *loader) checkMetrics() {
	const listen = "metrics.listen"
	a, err := netip.ParseAddrPort(l.ko.String(listen))
	if err != nil || a.Addr().Unmap().IsLoopback() || l.ko.Bool("metrics.exposed") {
		return
	}
	l.report(Problem{
		Origin: l.origins[listen], Key: listen, Message: quote(a.String()) + " can be reached from other computers, and nothing asks them for a password",
		Hint: "use 127.0.0.1 or [::1], or set metrics.exposed: true",
	})
}
