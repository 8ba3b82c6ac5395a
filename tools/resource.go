package tools

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/mark3labs/mcp-go/mcp"
)

// A job's output can also be had as a resource, for people who attach it in
// their client. It comes in pages; each says where the next one is.
const (
	outputTemplate = "gondolin://session/{session}/job/{job}/output{?offset}"
	pageBytes      = 40000
)

func outputURI(session, job string) string {
	return "gondolin://session/" + url.PathEscape(session) + "/job/" + url.PathEscape(job) + "/output"
}

func (s *Server) addResources() {
	s.mcp.AddResourceTemplate(mcp.NewResourceTemplate(outputTemplate, "Output of a command",
		mcp.WithTemplateDescription("What a job has written, stdout and stderr in order, in pages of 40000 bytes from offset on."),
		mcp.WithTemplateMIMEType("text/plain"),
	), s.readOutput)
}

func (s *Server) readOutput(ctx context.Context, r mcp.ReadResourceRequest) ([]mcp.ResourceContents, error) {
	uri := r.Params.URI
	u, err := url.Parse(uri)
	if err != nil {
		return nil, fmt.Errorf("resource address %q: %w", short(uri, 100), err)
	}
	parts := strings.Split(strings.Trim(u.Path, "/"), "/")
	if u.Scheme != "gondolin" || u.Host != "session" || len(parts) != 4 || parts[1] != "job" || parts[3] != "output" {
		return nil, fmt.Errorf("no resource %q; the form is %s", short(uri, 100), outputTemplate)
	}
	offset, err := strconv.ParseInt(firstOf(u.Query().Get("offset"), "0"), 10, 64)
	if err != nil || offset < 0 {
		return nil, fmt.Errorf("resource %q: offset must be a number of bytes", short(uri, 100))
	}
	ctx, cancel := s.requests.attach(ctx, r.Header.Get(requestHeader))
	defer cancel()
	leave, err := s.enter(false)
	if err != nil {
		return nil, err
	}
	defer leave()
	sess, err := s.opts.Sandboxes.Get(parts[0])
	if err != nil {
		return nil, fmt.Errorf("no session %q: %w", short(parts[0], 60), err)
	}
	chunk, err := sess.Output(ctx, parts[2], offset, pageBytes, 0)
	if err != nil {
		return nil, err
	}
	data := chunk.Data
	if whole := wholeRunes(data); chunk.Next < chunk.Job.Output && len(whole) > 0 {
		data = whole
	}
	text, _ := validUTF8(data)
	contents := []mcp.ResourceContents{mcp.TextResourceContents{URI: uri, MIMEType: "text/plain", Text: text}}
	if next := chunk.Offset + int64(len(data)); next < chunk.Job.Output {
		uri := outputURI(parts[0], parts[2]) + "?offset=" + strconv.FormatInt(next, 10)
		contents = append(contents, mcp.TextResourceContents{URI: uri, MIMEType: "text/plain", Text: "[continues at " + uri + "]"})
	}
	return contents, nil
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
