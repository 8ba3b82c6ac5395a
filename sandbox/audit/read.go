package audit

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"time"
)

var fileForm = regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9_-]{0,99})\.(\d{6,9})\.jsonl$`)

// stored is the record of one session as it lies on the disk.
type stored struct {
	session string
	numbers []int     // of its files, ascending
	changed time.Time // the last time
}

// list finds the records in a directory, those that changed last at the end. No
// directory is no record.
func list(dir string) ([]stored, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading audit records: %w", err)
	}
	found := map[string]*stored{}
	for _, e := range entries {
		m := fileForm.FindStringSubmatch(e.Name())
		if m == nil || !e.Type().IsRegular() {
			continue
		}
		n, _ := strconv.Atoi(m[2])
		s := found[m[1]]
		if s == nil {
			s = &stored{session: m[1]}
			found[m[1]] = s
		}
		s.numbers = append(s.numbers, n)
		if info, err := e.Info(); err == nil && info.ModTime().After(s.changed) {
			s.changed = info.ModTime()
		}
	}
	var all []stored
	for _, s := range found {
		slices.Sort(s.numbers)
		all = append(all, *s)
	}
	slices.SortFunc(all, func(a, b stored) int {
		return cmp.Or(a.changed.Compare(b.changed), cmp.Compare(a.session, b.session))
	})
	return all, nil
}

// Sessions names the sessions that have a record in dir, the one that changed last at the end.
func Sessions(dir string) ([]string, error) {
	all, err := list(dir)
	var names []string
	for _, s := range all {
		names = append(names, s.session)
	}
	return names, err
}

// Read visits the records of a session in order. It checks no hash. A last line that is
// still being written is left out.
func Read(dir, session string, visit func(Record) error) error {
	all, err := list(dir)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(s stored) bool { return s.session == session })
	if i < 0 {
		return fmt.Errorf("no audit record of the session %q in %s: %w", cut(session), dir, fs.ErrNotExist)
	}
	for _, n := range all[i].numbers {
		name := fileName(session, n)
		number := 0
		_, err := eachLine(filepath.Join(dir, name), func(line []byte) error {
			number++
			var r Record
			if err := json.Unmarshal(line, &r); err != nil {
				return fmt.Errorf("%s:%d: this is no audit record: %w", name, number, err)
			}
			return visit(r)
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // removed meanwhile, to make room
			return err
		}
	}
	return nil
}

// eachLine visits whole lines, and says whether something follows the last one.
func eachLine(path string, visit func(line []byte) error) (torn bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return false, fmt.Errorf("reading audit records: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	lines.Split(func(data []byte, atEOF bool) (int, []byte, error) {
		advance, line, err := bufio.ScanLines(data, false)
		torn = atEOF && advance == 0 && len(data) > 0
		return advance, line, err
	})
	for lines.Scan() {
		if err := visit(lines.Bytes()); err != nil {
			return false, err
		}
	}
	if err := lines.Err(); err != nil {
		return false, fmt.Errorf("reading %s: %w", filepath.Base(path), err)
	}
	return torn, nil
}

// Prune removes the records of sessions that do not run and did not change since a time.
// It returns how many.
func Prune(dir string, before time.Time) (int, error) {
	all, err := list(dir)
	if err != nil {
		return 0, err
	}
	var errs []error
	count := 0
	for _, s := range all {
		if !s.changed.Before(before) || s.running(dir) {
			continue
		}
		count++
		for _, n := range s.numbers {
			errs = append(errs, os.Remove(filepath.Join(dir, fileName(s.session, n))))
		}
	}
	return count, errors.Join(errs...)
}

// running says whether a Log holds the last file.
func (s *stored) running(dir string) bool {
	f, err := os.Open(filepath.Join(dir, fileName(s.session, s.numbers[len(s.numbers)-1])))
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB), syscall.EWOULDBLOCK)
}
