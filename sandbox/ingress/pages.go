package ingress

import (
	"fmt"
	"html/template"
	"net/http"
	"strings"
)

// headerName marks what the gateway has answered itself; its value is the kind of page.
const headerName = "Gondolin-Ingress"

// page is an answer of the gateway's own.
type page struct {
	status int
	kind   string
	title  string
	advice string // %s is the detail
}

// The pages.
var (
	pageHost = page{http.StatusMisdirectedRequest, "host", "This name is not served here",
		"The request names the host %q. Use the address that the gateway gave, or localhost. For another name, add it to ingress.hosts in the configuration of gondolin-mcp."}
	pageOrigin = page{http.StatusForbidden, "origin", "This page may not connect here",
		"A page of %q tried to open a connection or to change something. Only pages of the sandbox itself and of this computer may; for another name, add it to ingress.hosts in the configuration of gondolin-mcp."}
	pageToken = page{http.StatusForbidden, "token", "This address needs its token",
		"Open the whole URL that was printed for it, with the part after /~. It changes with each session.%.0s"}
	pageForm = page{http.StatusMethodNotAllowed, "form", "This is no request for a page",
		"Only requests for a path are served; this is no proxy and no tunnel.%.0s"}
	pageWorker = page{http.StatusForbidden, "worker", "No service workers here",
		"One would stay in the browser and answer for whatever is served at this address later. Let the gateway choose the address, as the tool expose does.%.0s"}
	pageRoutes = page{http.StatusBadGateway, "routes", "The list of routes cannot be used",
		"What is wrong with /etc/gondolin/listeners in the sandbox: %s"}
	pageRoute = page{http.StatusNotFound, "route", "No route leads there",
		"Nothing in /etc/gondolin/listeners in the sandbox matches %q. Write a line such as `/ :3000` into it: a prefix of the path, the port of a server, and `strip` if that should not see the prefix. It counts at once."}
	pageNobody = page{http.StatusBadGateway, "nobody", "No server answers in the sandbox",
		"Nothing listens on port %s of the sandbox. Start the server there, or look whether it has ended; it may listen on 127.0.0.1, ::1 or all addresses. Then load this page again."}
	pageBusy = page{http.StatusServiceUnavailable, "busy", "Too many connections",
		"As many connections into the sandbox are open as may be (port %s). Close some, such as other tabs, and try again."}
	pageFailed = page{http.StatusBadGateway, "failed", "The server in the sandbox did not answer",
		"Port %s. It speaks HTTP there, or ended in the middle of its answer; its own log says more."}
	pageRefused = page{http.StatusForbidden, "refused", "Refused", "%s"}
)

var html = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{.Title}}</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:4em auto;padding:0 1em}</style>
<h1>{{.Title}}</h1>
<p>{{.Text}}</p>
`))

// page answers with a page.
func (g *Gateway) page(w http.ResponseWriter, r *http.Request, p page, detail string) {
	text := fmt.Sprintf(p.advice, printable(detail))
	h := w.Header()
	h.Set(headerName, p.kind)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if !wantsHTML(r) {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(p.status)
		fmt.Fprintf(w, "%s: %s\n", p.title, text)
		return
	}
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	w.WriteHeader(p.status)
	_ = html.Execute(w, struct{ Title, Text string }{p.title, text})
}

func wantsHTML(r *http.Request) bool { return strings.Contains(r.Header.Get("Accept"), "text/html") }

// printable keeps control characters, which may be the guest's, out of a text.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return -1
		}
		return r
	}, s)
}
