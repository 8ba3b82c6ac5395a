package audit

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
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

// Find returns the session that a whole id or the beginning of one means. Its error names the sessions that
// changed last.
func Find(dir, name string) (string, error) {
	names, err := Sessions(dir)
	if err != nil {
		return "", err
	}
	var begun []string
	for _, n := range names {
		if n == name {
			return n, nil
		}
		if name != "" && strings.HasPrefix(n, name) {
			begun = append(begun, n)
		}
	}
	switch {
	case len(begun) == 1:
		return begun[0], nil
	case len(begun) > 1:
		return "", fmt.Errorf("%q means several audit records: %s", cut(name), strings.Join(begun[max(len(begun)-8, 0):], ", "))
	case len(names) == 0:
		return "", fmt.Errorf("there is no audit record in %s: %w", dir, fs.ErrNotExist)
	}
	slices.Reverse(names)
	return "", fmt.Errorf("no audit record of the session %q in %s, the latest are of %s: %w", cut(name), dir, strings.Join(names[:min(len(names), 8)], ", "), fs.ErrNotExist)
}

// Read visits the records of a session in order. It checks no hash. A last line that is
// still being written is left out.
func Read(dir, session string, visit func(Record) error) error {
	return NewReader(dir, session).Next(visit)
}

// Reader reads a record as it grows.
type Reader struct {
	dir, session string
	number       int   // of the file that was read last
	offset       int64 // behind its last whole line
	ended        bool
}

// NewReader returns a Reader at the beginning of a session's record.
func NewReader(dir, session string) *Reader { return &Reader{dir: dir, session: session} }

// Session is whose record it reads.
func (r *Reader) Session() string { return r.session }

// Ended reports whether the last record that was read is the one that closes the record.
func (r *Reader) Ended() bool { return r.ended }

// Skip goes behind the records that are there now, of which it reads only the last.
func (r *Reader) Skip() error {
	all, err := list(r.dir)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(s stored) bool { return s.session == r.session })
	if i < 0 {
		return r.none()
	}
	last := all[i].numbers[len(all[i].numbers)-1]
	f, err := os.Open(filepath.Join(r.dir, fileName(r.session, last)))
	if err != nil {
		return fmt.Errorf("reading audit records: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("reading audit records: %w", err)
	}
	var from int64
	var tail []byte
	for _, window := range []int64{64 << 10, maxLine} { // the first is nearly always enough
		from = max(st.Size()-window, 0)
		tail = make([]byte, st.Size()-from)
		n, err := f.ReadAt(tail, from)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("reading audit records: %w", err)
		}
		if tail = tail[:bytes.LastIndexByte(tail[:n], '\n')+1]; len(tail) > 0 {
			break
		}
	}
	r.number, r.offset = last, from+int64(len(tail))
	var rec Record
	line := bytes.TrimSuffix(tail, []byte("\n"))
	line = line[bytes.LastIndexByte(line, '\n')+1:]
	r.ended = json.Unmarshal(line, &rec) == nil && rec.isEnd()
	return nil
}

func (r *Record) isEnd() bool { return r.Kind == KindLog && r.Detail == detailEnd }

func (r *Reader) none() error {
	return fmt.Errorf("no audit record of the session %q in %s: %w", cut(r.session), r.dir, fs.ErrNotExist)
}

// Next visits the records that were not read before, as Read does.
func (r *Reader) Next(visit func(Record) error) error {
	if r.number == 0 {
		if err := r.skip(); err != nil {
			return err
		}
	}
	for {
		// A file is complete once there is another.
		_, err := os.Lstat(filepath.Join(r.dir, fileName(r.session, r.number+1)))
		more := err == nil
		switch err := r.file(visit); {
		case errors.Is(err, fs.ErrNotExist): // removed, to make room
			if err := r.skip(); err != nil {
				return err
			}
		case err != nil || !more:
			return err
		default:
			r.number, r.offset = r.number+1, 0
		}
	}
}

// skip goes to the first file there is after the present one.
func (r *Reader) skip() error {
	all, err := list(r.dir)
	if err != nil {
		return err
	}
	for _, s := range all {
		if s.session != r.session {
			continue
		}
		for _, n := range s.numbers {
			if n > r.number {
				r.number, r.offset = n, 0
				return nil
			}
		}
	}
	return r.none()
}

// file reads on in the present one.
func (r *Reader) file(visit func(Record) error) error {
	name := fileName(r.session, r.number)
	read, _, err := eachLine(filepath.Join(r.dir, name), r.offset, func(line []byte) error {
		var rec Record
		if err := json.Unmarshal(line, &rec); err != nil {
			return fmt.Errorf("%s, after byte %d: this is no audit record: %w", name, r.offset, err)
		}
		r.ended = rec.isEnd()
		return visit(rec)
	})
	r.offset += read
	return err
}

// eachLine visits whole lines from offset on. It says how many bytes they are, and whether something
// follows the last one.
func eachLine(path string, offset int64, visit func(line []byte) error) (read int64, torn bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, false, fmt.Errorf("reading audit records: %w", err)
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return 0, false, fmt.Errorf("reading audit records: %w", err)
	}
	lines := bufio.NewScanner(f)
	lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	lines.Split(func(data []byte, atEOF bool) (int, []byte, error) {
		advance, line, err := bufio.ScanLines(data, false)
		torn = atEOF && advance == 0 && len(data) > 0
		return advance, line, err
	})
	for lines.Scan() {
		if err := visit(lines.Bytes()); err != nil {
			return read, false, err
		}
		read += int64(len(lines.Bytes())) + 1
	}
	if err := lines.Err(); err != nil {
		return read, false, fmt.Errorf("reading %s: %w", filepath.Base(path), err)
	}
	return read, torn, nil
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
