package secret

import (
	"crypto/rand"
	"fmt"
	"strings"
)

const (
	alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

	defaultPrefix  = "gdl_"
	minRandom      = 16  // random characters at least: 95 bits
	usualRandom    = 20  // unless the operator wants fewer: 119 bits
	maxPlaceholder = 256 // bytes
)

// placeholder draws the text that stands for a secret in one session. It is random,
// so that nobody can know it beforehand and put it into a text that the guest
// will pass on.
func (s Shape) placeholder(value string) (string, error) {
	prefix, length := s.Prefix, s.Length
	if prefix == "" && length == 0 {
		prefix = defaultPrefix
	}
	if length == 0 {
		length = max(len(prefix)+usualRandom, min(len(value), maxPlaceholder))
	}
	var b strings.Builder
	b.WriteString(prefix)
	random := make([]byte, 64)
	for b.Len() < length {
		if _, err := rand.Read(random); err != nil {
			return "", fmt.Errorf("drawing a placeholder: %w", err)
		}
		for _, r := range random {
			// 62 of 64 values are taken, so that all letters are as likely.
			if r &= 63; int(r) < len(alphabet) && b.Len() < length {
				b.WriteByte(alphabet[r])
			}
		}
	}
	return b.String(), nil
}
