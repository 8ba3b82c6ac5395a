//go:build linux

package sandboxd

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gondolin-go/gondolin/guest/wire"
)

// cardName is the network card's; the machine has one.
const cardName = "eth0"

// setupNetwork configures the card as the kernel's command line says (wire.CmdlineNet). An
// image whose kernel has no driver for it has no network, and works.
func setupNetwork(config string, readonly bool) error {
	lists := strings.Split(config, ";")
	if len(lists) != 3 {
		return fmt.Errorf("network configuration %q has %d lists, not 3", config, len(lists))
	}
	card, err := netlink.LinkByName(cardName)
	if err != nil {
		return nil
	}
	// Static addresses that nobody else can have: no detection of duplicates, no router's word.
	for name, value := range map[string]string{"accept_dad": "0", "accept_ra": "0", "addr_gen_mode": "1"} {
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+cardName+"/"+name, []byte(value), 0)
	}
	if err := netlink.LinkSetUp(card); err != nil {
		return fmt.Errorf("bringing up %s: %w", cardName, err)
	}
	for _, text := range strings.Split(lists[0], ",") {
		addr, err := netlink.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("address %q: %w", text, err)
		}
		if err := netlink.AddrAdd(card, addr); err != nil && !errors.Is(err, unix.EEXIST) && !(addr.IP.To4() == nil && ipv6Off(err)) {
			return fmt.Errorf("adding address %s: %w", text, err)
		}
	}
	for _, text := range strings.Split(lists[1], ",") {
		gateway, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("gateway %q: %w", text, err)
		}
		err = netlink.RouteAdd(&netlink.Route{LinkIndex: card.Attrs().Index, Gw: net.IP(gateway.AsSlice())})
		if err != nil && !errors.Is(err, unix.EEXIST) && !(gateway.Is6() && ipv6Off(err)) {
			return fmt.Errorf("routing by %s: %w", text, err)
		}
	}
	var resolv strings.Builder
	for _, server := range strings.Split(lists[2], ",") {
		fmt.Fprintf(&resolv, "nameserver %s\n", server)
	}
	return provide("/etc/resolv.conf", resolv.String(), readonly)
}

// ipv6Off reports whether a kernel without IPv6 refused an address or route of it.
func ipv6Off(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EACCES) ||
		errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENETUNREACH)
}

// provide gives a file of the root a content: written, or, where the root is read-only,
// mounted over it if it is there.
func provide(path, content string, readonly bool) error {
	if !readonly {
		if st, err := os.Lstat(path); err == nil && !st.Mode().IsRegular() {
			_ = os.Remove(path) // a link to where a network manager would write
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return fmt.Errorf("writing %s: %w", path, err)
		}
		return nil
	}
	source := stateDir + strings.ReplaceAll(path, "/", "_")
	if err := os.WriteFile(source, []byte(content), 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", source, err)
	}
	if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("mounting %s: %w", path, err)
	}
	return nil
}

// stateDir holds what the agent gives the session's programs.
const stateDir = "/run/gondolin/"

// bundlePath is the file with all certificates that programs shall trust: the image's and
// the session's.
const bundlePath = stateDir + "ca-certificates.crt"

// sessionPath is the file with the session's certificate alone.
const sessionPath = stateDir + "session-ca.crt"

// bundles are where images have their certificates; Debian and Alpine, Fedora, openSUSE.
var bundles = []string{
	"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem",
}

// knownHosts is where OpenSSH looks for the host keys that every user trusts, ssh(1).
const knownHosts = "/etc/ssh/ssh_known_hosts"

// trustVars are the variables by which programs find certificates that do not look where
// the image has them: OpenSSL and Python's ssl, requests and pip, curl, git, Node, Cargo, Deno, the AWS tools, gRPC.
var trustVars = []string{
	"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS",
	"CARGO_HTTP_CAINFO", "DENO_CERT", "AWS_CA_BUNDLE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
}

// trustEnv is what they are set to. Reading the image's hundred and more authorities takes
// a program under emulation longer than the rest of a request.
func trustEnv(alone bool) []string {
	path := bundlePath
	if alone {
		path = sessionPath
	}
	env := make([]string, 0, len(trustVars))
	for _, name := range trustVars {
		env = append(env, name+"="+path)
	}
	return env
}

// prepareTrust copies the image's certificates to bundlePath, and its own file of them into
// the writable layer, before a session's authority is known: a clone then only appends.
func prepareTrust(readonly bool) error {
	var all []byte
	for _, path := range bundles {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		all = append(withoutBlock(b), '\n')
		if readonly {
			break
		}
		if len(all) <= len(b) { // the disk had a session before
			if err := os.WriteFile(path, all, 0o644); err != nil {
				return fmt.Errorf("writing %s: %w", path, err)
			}
		} else if f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0); err == nil {
			f.Close()
		}
		break
	}
	if err := os.WriteFile(bundlePath, all, 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", bundlePath, err)
	}
	if readonly {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(knownHosts), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(knownHosts, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("making %s: %w", knownHosts, err)
	}
	return errors.Join(f.Close(), dropBlock(knownHosts))
}

// What the agent adds to files of the image stands between these lines, so that it can be
// taken out when a disk or a machine goes on in another session.
const (
	blockBegin = "# gondolin session begins\n"
	blockEnd   = "# gondolin session ends\n"
)

func block(b []byte) []byte {
	if len(b) > 0 && b[len(b)-1] != '\n' {
		b = append(b, '\n')
	}
	return append(append([]byte(blockBegin), b...), blockEnd...)
}

func withoutBlock(b []byte) []byte {
	before, rest, found := bytes.Cut(b, []byte(blockBegin))
	if !found {
		return b
	}
	_, after, _ := bytes.Cut(rest, []byte(blockEnd))
	return append(bytes.Clone(before), withoutBlock(after)...)
}

// dropBlock takes out of a file what an earlier session added.
func dropBlock(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil // what is not there says nothing
	}
	rest := withoutBlock(b)
	if len(rest) == len(b) {
		return nil
	}
	if err := os.WriteFile(path, rest, 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// trust lets the guest's programs trust the session's authority, in the place of an earlier
// one if there was one.
func trust(m *wire.Trust, readonly, again bool) error {
	ca := block(m.CA)
	if again {
		if err := distrust(readonly); err != nil {
			return err
		}
	}
	if err := os.WriteFile(sessionPath, m.CA, 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", sessionPath, err)
	}
	if err := appendTo(bundlePath, ca); err != nil {
		return err
	}
	for _, path := range bundles {
		if _, err := os.Stat(path); err != nil {
			continue
		}
		if !readonly {
			if err := appendTo(path, append([]byte("\n"), ca...)); err != nil {
				return err
			}
		} else if again {
			break // it is there already
		} else if err := unix.Mount(bundlePath, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", path, err)
		}
		break
	}
	switch {
	case m.KnownHosts == "":
		return nil
	case readonly:
		return provide(knownHosts, m.KnownHosts, true)
	}
	return appendTo(knownHosts, block([]byte(m.KnownHosts)))
}

// distrust takes out the authority of an earlier session.
func distrust(readonly bool) error {
	paths := []string{bundlePath}
	if !readonly {
		paths = append(append(paths, bundles...), knownHosts)
	}
	var errs []error
	for _, path := range paths {
		errs = append(errs, dropBlock(path))
	}
	return errors.Join(errs...)
}

func appendTo(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return fmt.Errorf("opening %s: %w", path, err)
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}
