package images

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// keepXattrs picks the extended attributes out of PAX records that the guest's kernel can use.
// trusted.overlay.* would steer the guest's own overlay and is left out, as is every name space that
// ext4 cannot hold.
func keepXattrs(records map[string]string) (map[string]string, error) {
	var kept map[string]string
	total := 0
	for key, value := range records {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		if !ok || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		switch {
		case strings.HasPrefix(name, "user."), strings.HasPrefix(name, "trusted."), strings.HasPrefix(name, "security."):
		case name == "system.posix_acl_access", name == "system.posix_acl_default":
			acl, err := diskACL([]byte(value))
			if err != nil {
				return nil, fmt.Errorf("extended attribute %s: %w", name, err)
			}
			value = string(acl)
		default:
			continue
		}
		if len(name) > 255 {
			return nil, fmt.Errorf("extended attribute name of %d bytes is too long", len(name))
		}
		total += len(name) + len(value) + 24
		if total > maxXattrs {
			return nil, fmt.Errorf("extended attribute %s: more than %d bytes of attributes on one file", name, maxXattrs)
		}
		if kept == nil {
			kept = map[string]string{}
		}
		kept[name] = value
	}
	return kept, nil
}

// diskACL turns a POSIX ACL from the form of the system call (version 2, 8 bytes an entry) into that of
// ext4 (version 1, entries without a qualifier cut to 4 bytes).
func diskACL(b []byte) ([]byte, error) {
	if len(b) < 4 || (len(b)-4)%8 != 0 || binary.LittleEndian.Uint32(b) != 2 {
		return nil, errors.New("not a POSIX ACL of version 2")
	}
	out := binary.LittleEndian.AppendUint32(nil, 1)
	for e := b[4:]; len(e) > 0; e = e[8:] {
		out = append(out, e[:4]...)
		const user, group = 0x02, 0x08
		if tag := binary.LittleEndian.Uint16(e); tag == user || tag == group {
			out = append(out, e[4:8]...)
		}
	}
	return out, nil
}
