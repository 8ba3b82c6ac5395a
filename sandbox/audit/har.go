package audit

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// The part of HAR 1.2 that a record can fill. Headers, queries and contents are not recorded, so
// their lists are empty; -1 is what the format says for a size that is not known.
type (
	harFile struct {
		Log harLog `json:"log"`
	}
	harLog struct {
		Version string     `json:"version"`
		Creator harCreator `json:"creator"`
		Entries []harEntry `json:"entries"`
	}
	harCreator struct {
		Name    string `json:"name"`
		Version string `json:"version"`
	}
	harEntry struct {
		Started  time.Time   `json:"startedDateTime"`
		Time     float64     `json:"time"` // milliseconds
		Request  harRequest  `json:"request"`
		Response harResponse `json:"response"`
		Cache    struct{}    `json:"cache"`
		Timings  harTimings  `json:"timings"`
		Server   string      `json:"serverIPAddress,omitempty"`
		Conn     string      `json:"connection,omitempty"`
		Comment  string      `json:"comment,omitempty"`
	}
	harRequest struct {
		Method      string   `json:"method"`
		URL         string   `json:"url"`
		HTTPVersion string   `json:"httpVersion"`
		Cookies     []string `json:"cookies"`
		Headers     []string `json:"headers"`
		Query       []string `json:"queryString"`
		HeadersSize int      `json:"headersSize"`
		BodySize    int64    `json:"bodySize"`
	}
	harResponse struct {
		Status      int        `json:"status"`
		StatusText  string     `json:"statusText"`
		HTTPVersion string     `json:"httpVersion"`
		Cookies     []string   `json:"cookies"`
		Headers     []string   `json:"headers"`
		Content     harContent `json:"content"`
		RedirectURL string     `json:"redirectURL"`
		HeadersSize int        `json:"headersSize"`
		BodySize    int64      `json:"bodySize"`
	}
	harContent struct {
		Size     int64  `json:"size"`
		MimeType string `json:"mimeType"`
	}
	harTimings struct {
		Send    float64 `json:"send"`
		Wait    float64 `json:"wait"`
		Receive float64 `json:"receive"`
	}
)

// WriteHAR writes the HTTP requests of a session as an HTTP archive (HAR 1.2), which browsers
// and other tools show. Each request is an entry, with its verdict and rule as comment.
func WriteHAR(w io.Writer, dir, session string) error {
	file := harFile{Log: harLog{Version: "1.2", Creator: harCreator{Name: "gondolin", Version: "1"}, Entries: []harEntry{}}}
	err := Read(dir, session, func(r Record) error {
		if r.Kind == KindNetwork && r.Method != "" && r.Status != 0 {
			file.Log.Entries = append(file.Log.Entries, r.entry())
		}
		return nil
	})
	if err != nil {
		return err
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(file); err != nil {
		return fmt.Errorf("writing the HTTP archive: %w", err)
	}
	return nil
}

func (r Record) entry() harEntry {
	none := []string{}
	e := harEntry{
		Started: r.Time, Time: r.Seconds * 1000, Timings: harTimings{Wait: r.Seconds * 1000},
		Request: harRequest{
			Method: r.Method, URL: r.URL(), HTTPVersion: "HTTP", Cookies: none, Headers: none, Query: none, HeadersSize: -1, BodySize: r.Sent,
		},
		Response: harResponse{
			Status: r.Status, HTTPVersion: "HTTP", Cookies: none, Headers: none,
			Content: harContent{Size: r.Received}, HeadersSize: -1, BodySize: r.Received,
		},
		Conn: strconv.FormatUint(r.Flow, 10), Comment: r.Verdict,
	}
	if host, _, err := net.SplitHostPort(r.Addr); err == nil {
		e.Server = host
	} else {
		e.Server = r.Addr
	}
	if r.Rule != "" {
		e.Comment += " by the rule " + strconv.Quote(r.Rule)
	}
	return e
}

// URL is where a network event went, without query: https://host:port/path, or tcp://host:port.
func (e Event) URL() string {
	standard := map[string]uint16{"http": 80, "ws": 80, "https": 443, "wss": 443, "ssh": 22}[e.Protocol]
	host := e.Host
	switch {
	case e.Port != 0 && e.Port != standard:
		host = net.JoinHostPort(host, strconv.Itoa(int(e.Port)))
	case net.ParseIP(host) != nil && net.ParseIP(host).To4() == nil:
		host = "[" + host + "]"
	}
	return e.Protocol + "://" + host + e.Path
}
