package images

import "fmt"

// Limits bound what a root file system may claim while it is unpacked. They exist because layers come
// from strangers: a few hundred bytes of gzip can ask for terabytes. The zero value means the defaults.
type Limits struct {
	Entries int   // files, directories and links over all layers; default 2,000,000
	Bytes   int64 // unpacked tar stream, headers and sparse holes included; default 32 GiB
}

const (
	defaultEntries = 2_000_000
	defaultBytes   = 32 << 30
	// maxMetadata bounds what is held in memory: names, link targets and extended attributes.
	maxMetadata  = 512 << 20
	maxComponent = 255
	maxPath      = 4096
	maxSymlinks  = 40
	// maxDepth keeps recursive walks shallow; no real image comes near it.
	maxDepth = 1024
)

func (l Limits) withDefaults() Limits {
	if l.Entries <= 0 {
		l.Entries = defaultEntries
	}
	if l.Bytes <= 0 {
		l.Bytes = defaultBytes
	}
	return l
}

// limitError says which of the Limits was reached.
type limitError string

func (e limitError) Error() string { return string(e) }

// budget is what is left of the limits while one tree is filled.
type budget struct {
	limits   Limits
	entries  int
	bytes    int64
	metadata int64
}

func (b *budget) addEntry(metadata int) error {
	b.entries++
	if b.entries > b.limits.Entries {
		return limitError(fmt.Sprintf("too many entries: more than %d", b.limits.Entries))
	}
	b.metadata += int64(metadata)
	if b.metadata > maxMetadata {
		return fmt.Errorf("names and extended attributes need more than %s", FormatBytes(maxMetadata))
	}
	return nil
}

// addBytes accounts for n bytes before they are stored.
func (b *budget) addBytes(n int64) error {
	if n < 0 || n > b.limits.Bytes-b.bytes {
		return limitError(fmt.Sprintf("too big: the unpacked root file system would exceed %s (--max-bytes sets another limit)", FormatBytes(b.limits.Bytes)))
	}
	b.bytes += n
	return nil
}

// FormatBytes writes a size the way people read it.
func FormatBytes(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, exp := float64(n)/unit, 0
	for value >= unit && exp < 4 {
		value /= unit
		exp++
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTP"[exp])
}
