package ingress

import (
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// tokenPath begins the segment of a path that is a token.
const tokenPath = "/~"

// names are the hosts that requests may name.
type names []string

func newNames(addr net.Addr, more []string) names {
	n := names{"localhost", "127.0.0.1", "::1"}
	if host, _, err := net.SplitHostPort(addr.String()); err == nil {
		n = append(n, host)
	}
	for _, name := range more {
		n = append(n, strings.ToLower(strings.TrimSuffix(name, ".")))
	}
	return n
}

// has says whether a Host header names one of the hosts, on whatever port: between the two
// there may be a tunnel.
func (n names) has(hostport string) bool {
	u := url.URL{Host: hostport}
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	if strings.HasSuffix(host, ".localhost") {
		return true // RFC 6761: always this computer
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.Unmap().String()
	}
	for _, name := range n {
		if name == host {
			return true
		}
	}
	return false
}

// admit says whether a request may go on, and answers it if not.
func (g *Gateway) admit(w http.ResponseWriter, r *http.Request) bool {
	if g.opts.Token != "" {
		return g.admitToken(w, r)
	}
	switch {
	case !g.names.has(r.Host):
		g.page(w, r, pageHost, short(r.Host))
	case g.foreign(r):
		g.page(w, r, pageOrigin, short(r.Header.Get("Origin")))
	default:
		dropCookies(r)
		return true
	}
	return false
}

func isUpgrade(r *http.Request) bool { return r.Header.Get("Upgrade") != "" }

// onlyWebSockets makes a request for another protocol one without it, as a server may that does
// not know it: nobody would read what follows.
func onlyWebSockets(r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		r.Header.Del("Upgrade")
	}
}

// foreign says whether a page of another site asks for a connection or a change. It could not read the
// answer, but need not to start something in the guest.
func (g *Gateway) foreign(r *http.Request) bool {
	origin, change := r.Header.Get("Origin"), false
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
	default:
		// The origin of a page that hides it is null; browsers tell of their own accord whose it is.
		site := r.Header.Get("Sec-Fetch-Site")
		change = site != "same-origin" && site != "none"
	}
	return origin != "" && (isUpgrade(r) || change) && !g.sameSite(origin)
}

// sameSite says whether an origin is one of ours, on whatever port: a page of one server of the
// guest speaks to another.
func (g *Gateway) sameSite(origin string) bool {
	u, err := url.Parse(origin)
	return err == nil && u.Host != "" && g.names.has(u.Host)
}

// admitToken wants the token in the path or the cookie.
func (g *Gateway) admitToken(w http.ResponseWriter, r *http.Request) bool {
	// A page of the guest may have set others of that name, for longer paths, which come first.
	known := slices.ContainsFunc(r.CookiesNamed(g.cookie()), func(c *http.Cookie) bool { return g.isToken(c.Value) })
	if known && !strings.HasPrefix(r.URL.EscapedPath(), tokenPath) {
		if isUpgrade(r) && r.Header.Get("Origin") != "" && !strings.EqualFold(hostOf(r.Header.Get("Origin")), hostOf("//"+r.Host)) {
			g.page(w, r, pageOrigin, short(r.Header.Get("Origin")))
			return false
		}
		dropCookies(r)
		return true
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.EscapedPath(), "/"), "/")
	token, ok := strings.CutPrefix("/"+first, tokenPath)
	if !ok || !g.isToken(token) || strip(r.URL, tokenPath+token) != nil {
		g.page(w, r, pageToken, "")
		return false
	}
	http.SetCookie(w, &http.Cookie{Name: g.cookie(), Value: token, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode})
	dropCookies(r)
	if r.Method == http.MethodGet && wantsHTML(r) && !isUpgrade(r) {
		// Out of the address bar, the history and the Referer of what the page loads. Slashes
		// at the beginning would make it another host's.
		to := url.URL{Path: "/" + strings.TrimLeft(r.URL.Path, `/\`), RawQuery: r.URL.RawQuery}
		w.Header().Set("Cache-Control", "no-store")
		http.Redirect(w, r, to.String(), http.StatusSeeOther)
		return false
	}
	return true
}

func hostOf(origin string) string {
	u, err := url.Parse(origin)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

func (g *Gateway) isToken(s string) bool {
	return subtle.ConstantTimeCompare([]byte(s), []byte(g.opts.Token)) == 1
}

// cookiePrefix begins the names of our cookies.
const cookiePrefix = "gondolin_"

// cookie names the cookie, which browsers send to every port of a host.
func (g *Gateway) cookie() string { return cookiePrefix + g.port }

// dropCookies keeps tokens from the guest, also those of other gateways. Other cookies pass as
// they are written.
func dropCookies(r *http.Request) {
	var kept []string
	for _, line := range r.Header["Cookie"] {
		for c := range strings.SplitSeq(line, ";") {
			if c = strings.TrimSpace(c); c != "" && !strings.HasPrefix(c, cookiePrefix) {
				kept = append(kept, c)
			}
		}
	}
	r.Header.Del("Cookie")
	if len(kept) > 0 {
		r.Header.Set("Cookie", strings.Join(kept, "; "))
	}
}

// keepTokens takes out of a guest's answer what would overwrite a token in the browser, of this gateway or another.
func keepTokens(h http.Header) {
	const name = "Set-Cookie"
	kept := slices.DeleteFunc(h[name], func(c string) bool {
		return strings.HasPrefix(strings.TrimLeft(c, " \t="), cookiePrefix) // browsers send "=a=b" as "a=b"
	})
	if len(kept) == 0 {
		h.Del(name)
		return
	}
	h[name] = kept
}
