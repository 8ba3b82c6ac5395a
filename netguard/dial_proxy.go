package netguard

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// maxProxyHead bounds a proxy's answer to CONNECT, in bytes.
const maxProxyHead = 16 << 10

// proxyFor is the proxy through which the host reaches a server, or nil. The scheme that
// Upstream.Proxy is asked with goes by the port, since there is nothing else yet.
func (d *hostDialer) proxyFor(host policy.Host, port uint16) (*url.URL, error) {
	if d.up.Proxy == nil {
		return nil, nil
	}
	u := &url.URL{Scheme: "https", Host: net.JoinHostPort(host.String(), strconv.Itoa(int(port)))}
	if port == 80 {
		u.Scheme = "http"
	}
	text, err := d.up.Proxy(&http.Request{Method: http.MethodGet, URL: u, Host: u.Host, Header: http.Header{}})
	if err == nil && text == "" {
		return nil, nil
	}
	var proxy *url.URL
	if err == nil {
		proxy, err = url.Parse(text)
	}
	if err != nil || proxy.Host == "" {
		// The text, which the error quotes, may hold a password.
		return nil, errors.New("the host's proxy setting is no URL")
	}
	if proxy.Scheme != "http" && proxy.Scheme != "https" {
		return nil, fmt.Errorf("the host's proxy is of the kind %q: only http and https are supported", proxy.Scheme)
	}
	return proxy, nil
}

// dialProxy asks a proxy for a tunnel. The proxy itself is the operator's choice and not
// judged.
func (d *hostDialer) dialProxy(ctx context.Context, proxy *url.URL, host policy.Host, port uint16) (net.Conn, error) {
	address := proxy.Host
	if proxy.Port() == "" {
		address = net.JoinHostPort(proxy.Hostname(), map[string]string{"http": "80", "https": "443"}[proxy.Scheme])
	}
	var nd net.Dialer
	conn, err := nd.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if proxy.Scheme == "https" {
		conf := &tls.Config{}
		if d.up.TLS != nil {
			conf = d.up.TLS.Clone()
		}
		conf.ServerName = proxy.Hostname()
		conf.NextProtos = nil
		t := tls.Client(conn, conf)
		if err := t.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, err
		}
		conn = t
	}
	tunnel, err := connect(conn, proxy, net.JoinHostPort(host.String(), strconv.Itoa(int(port))))
	if err != nil {
		conn.Close()
		return nil, err
	}
	if !stop() {
		conn.Close()
		return nil, context.Cause(ctx)
	}
	return tunnel, nil
}

func connect(conn net.Conn, proxy *url.URL, target string) (net.Conn, error) {
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: target}, Host: target, Header: http.Header{"User-Agent": {""}}}
	if u := proxy.User; u != nil {
		password, _ := u.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)))
	}
	if err := req.Write(conn); err != nil {
		return nil, fmt.Errorf("asking for a tunnel: %w", err)
	}
	head := &io.LimitedReader{R: conn, N: maxProxyHead}
	r := bufio.NewReader(head)
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		return nil, fmt.Errorf("reading its answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it answers %s", resp.Status)
	}
	early, err := r.Peek(r.Buffered())
	if err != nil {
		return nil, fmt.Errorf("reading its answer: %w", err)
	}
	return &tunnelConn{replayConn{Conn: conn, head: append([]byte(nil), early...)}}, nil
}

// tunnelConn is a connection through a proxy. Its RemoteAddr is no *net.TCPAddr: where the
// proxy connects to is not known, and must not be judged by the proxy's own address.
type tunnelConn struct{ replayConn }

// RemoteAddr implements net.Conn.
func (c *tunnelConn) RemoteAddr() net.Addr { return tunnelAddr{c.Conn.RemoteAddr().String()} }

type tunnelAddr struct{ proxy string }

// Network implements net.Addr.
func (tunnelAddr) Network() string { return "tunnel" }

// String implements net.Addr.
func (a tunnelAddr) String() string { return a.proxy }
