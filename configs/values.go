package configs

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/gondolin-go/gondolin/netguard/policy"
)

// Size is an amount of memory or disk in MiB. It reads and prints as "2GiB".
type Size int

// String writes the size with the largest unit that keeps it whole.
func (s Size) String() string {
	switch {
	case s != 0 && s%(1<<20) == 0:
		return strconv.Itoa(int(s>>20)) + "TiB"
	case s != 0 && s%(1<<10) == 0:
		return strconv.Itoa(int(s>>10)) + "GiB"
	}
	return strconv.Itoa(int(s)) + "MiB"
}

// MarshalText implements encoding.TextMarshaler, for YAML and JSON.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

var sizeForm = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)$`)

func parseSize(text string) (Size, error) {
	m := sizeForm.FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("%s is no size: write it like 512MiB or 2GiB", quote(text))
	}
	var mib float64
	switch unit := strings.ToLower(m[2]); unit {
	case "", "m", "mi", "mib":
		mib = 1
	case "g", "gi", "gib":
		mib = 1 << 10
	case "t", "ti", "tib":
		mib = 1 << 20
	case "k", "ki", "kib", "b":
		return 0, fmt.Errorf("%s is too fine: sizes are whole MiB", quote(text))
	case "mb", "gb", "tb":
		// 1000 or 1024? Guessing would be wrong for half of the people.
		return 0, fmt.Errorf("%s can be read in two ways: write %s%siB", quote(text), m[1], strings.ToUpper(unit[:1]))
	default:
		return 0, fmt.Errorf("%s has an unknown unit %s: use MiB, GiB or TiB", quote(text), quote(m[2]))
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if err != nil || n*mib > math.MaxInt32 {
		return 0, fmt.Errorf("%s is too large", quote(text))
	}
	if n *= mib; n != math.Trunc(n) {
		return 0, fmt.Errorf("%s is not a whole number of MiB", quote(text))
	}
	return Size(n), nil
}

// Duration is a time span; Never, a negative one, is none at all.
type Duration time.Duration

// Never is the limit that is not there.
const Never Duration = -1

// String writes 1h30m, or never.
func (d Duration) String() string {
	if d < 0 {
		return "never"
	}
	s := time.Duration(d).String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = s[:len(s)-2]
		}
	}
	return s
}

// MarshalText implements encoding.TextMarshaler, for YAML and JSON.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func parseDuration(text string) (Duration, error) {
	if text == "never" {
		return Never, nil
	}
	d, err := time.ParseDuration(text)
	switch {
	case err == nil && d < 0:
		return 0, fmt.Errorf("%s is negative", quote(text))
	case err == nil:
		return Duration(d), nil
	}
	if _, nerr := strconv.Atoi(text); nerr == nil {
		return 0, fmt.Errorf("%s has no unit: write %ss, %sm or %sh", quote(text), text, text, text)
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, nerr := strconv.Atoi(days); nerr == nil && n > 0 && n < 1e5 {
			return 0, fmt.Errorf("%s: days are not known, write %dh", quote(text), 24*n)
		}
	}
	return 0, fmt.Errorf("%s is no duration: write it like 30s, 15m or 2h", quote(text))
}

func parseInt(text string) (int, error) {
	n, err := strconv.ParseInt(text, 10, 32)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return 0, fmt.Errorf("%s is out of range", quote(text))
	case err != nil:
		return 0, fmt.Errorf("%s is no whole number", quote(text))
	}
	return int(n), nil
}

// parseNumber reads a number that need not be whole.
func parseNumber(text string) (float64, error) {
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsInf(n, 0) || math.IsNaN(n) {
		return 0, fmt.Errorf("%s is no number", quote(text))
	}
	return n, nil
}

// parseBytes reads an amount of data as package policy writes it.
func parseBytes(text string) (b policy.Bytes, err error) {
	err = b.UnmarshalText([]byte(text))
	return b, err
}

func parseBool(text string) (bool, error) {
	switch strings.ToLower(text) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("want true or false, got %s", quote(text))
}

// quote shows a value or a name that strangers may have written: printable, and not for ever.
func quote(s string) string { return strconv.Quote(shortened(s)) }

func shortened(s string) string {
	const most = 60
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
