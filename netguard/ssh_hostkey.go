package netguard

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"
	xknownhosts "golang.org/x/crypto/ssh/knownhosts"
)

// knownKeys checks one server's key.
type knownKeys struct {
	address    string
	callback   ssh.HostKeyCallback
	algorithms []string // those of known keys first, as OpenSSH does
	refused    *refusal // what check has found
}

// hostKeys reads what is known of a server.
func (s *sshServer) hostKeys(address string) (*knownKeys, *refusal) {
	var files []string
	for _, f := range s.g.o.SSH.KnownHosts {
		if _, err := os.Stat(f); !errors.Is(err, fs.ErrNotExist) {
			files = append(files, f)
		}
	}
	db, err := knownhosts.NewDB(files...)
	if err != nil {
		// Its text has paths and perhaps a line of the host's: not for the guest.
		s.g.o.Log.Error("reading the known hosts of SSH", "error", err)
		return nil, &refusal{failed: true, rule: "upstream", reason: "the host's known_hosts cannot be read", remedy: "the operator finds the line in the log and has to mend it"}
	}
	k := &knownKeys{address: address, callback: db.HostKeyCallback()}
	supported := ssh.SupportedAlgorithms().HostKeys // without SHA-1
	for _, a := range append(db.HostKeyAlgorithms(address), supported...) {
		if slices.Contains(supported, a) && !slices.Contains(k.algorithms, a) {
			k.algorithms = append(k.algorithms, a)
		}
	}
	return k, nil
}

// check implements ssh.HostKeyCallback.
func (k *knownKeys) check(_ string, _ net.Addr, key ssh.PublicKey) error {
	// Only the name counts: an address that somebody trusts is not the name's.
	nowhere := &net.TCPAddr{IP: net.IPv4zero}
	err := k.callback(k.address, nowhere, key)
	if err == nil {
		return nil
	}
	why := ""
	if cert, ok := key.(*ssh.Certificate); ok {
		// Its authority is not known, or does not vouch for this; its key may be.
		why = " (its certificate does not help: " + oneLine(err.Error()) + ")"
		key = cert.Key
		if err = k.callback(k.address, nowhere, key); err == nil {
			return nil
		}
	}
	k.refused = k.explain(key, err, why)
	return k.refused
}

func (k *knownKeys) explain(key ssh.PublicKey, err error, why string) *refusal {
	r := &refusal{rule: "upstream"}
	shown := fingerprint(key)
	var other *xknownhosts.KeyError
	var revoked *xknownhosts.RevokedError
	switch {
	case errors.As(err, &revoked):
		r.reason = fmt.Sprintf("the server %s shows the host key %s, which is revoked%s", k.address, shown, why)
		r.remedy = "do not use it; only the operator can change known_hosts"
	case errors.As(err, &other) && len(other.Want) > 0:
		var known []string
		for _, w := range other.Want[:min(len(other.Want), 5)] {
			known = append(known, fingerprint(w.Key))
		}
		r.reason = fmt.Sprintf("the server %s shows the host key %s, but known is %s%s: somebody may be between", k.address, shown, strings.Join(known, " or "), why)
		r.remedy = "if the server's key has really changed, the operator has to replace it in the host's known_hosts"
	default:
		r.reason = fmt.Sprintf("the host key of the server %s is not known: it shows %s%s", k.address, shown, why)
		r.remedy = "the operator has to compare the fingerprint with the server's and add the key to the host's known_hosts"
	}
	return r
}

func fingerprint(key ssh.PublicKey) string { return key.Type() + " " + ssh.FingerprintSHA256(key) }
