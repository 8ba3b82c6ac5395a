package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options are bounds of a record. A zero field takes its default.
type Options struct {
	FileSize int64            // bytes after which the next file begins, default 16 MiB
	Files    int              // files of one session, at least 2, default 16
	Now      func() time.Time // nil: time.Now
}

const (
	defaultFileSize = 16 << 20
	defaultFiles    = 16
	syncEvery       = time.Second
)

// genesis is what the first line carries as the hash of the one before.
var genesis = strings.Repeat("0", 2*sha256.Size)

var sessionForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$`)

// Log is the record of one session.
type Log struct {
	dir, session string
	o            Options

	mu     sync.Mutex
	file   *os.File // nil once closed
	number int      // of the file
	size   int64    // of the file
	seq    uint64   // of the last line
	head   string   // its hash
	old    []Removed
	synced time.Time
	broken error // nothing can be recorded any more
}

var errClosed = errors.New("the audit record is closed")

// Open begins the record of a session in dir, which it makes if necessary. There must be
// none of that session yet.
func Open(dir, session string) (*Log, error) { return OpenWith(dir, session, Options{}) }

// OpenWith is Open with bounds.
func OpenWith(dir, session string, o Options) (*Log, error) {
	if !sessionForm.MatchString(session) {
		return nil, fmt.Errorf("%q cannot name an audit record: use letters, digits, hyphens and underscores", cut(session))
	}
	if o.FileSize <= 0 {
		o.FileSize = defaultFileSize
	}
	if o.Files == 0 {
		o.Files = defaultFiles
	}
	o.Files = max(o.Files, 2)
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of audit records: %w", err)
	}
	l := &Log{dir: dir, session: session, o: o, head: genesis, synced: o.Now()}
	if err := l.next(detailBegin); err != nil {
		return nil, err
	}
	return l, nil
}

// Record writes an event down. When it returns nil the line is in the file.
func (l *Log) Record(e Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	if l.size >= l.o.FileSize {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	if err := l.append(e, nil); err != nil {
		return err
	}
	if now := l.o.Now(); now.Sub(l.synced) >= syncEvery {
		l.synced = now
		if err := l.file.Sync(); err != nil {
			return fmt.Errorf("writing the audit record to disk: %w", err)
		}
	}
	return nil
}

// Head is the number and the hash of the last line.
func (l *Log) Head() (seq uint64, hash string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seq, l.head
}

// Close ends the record with a line that says so. Later calls do nothing.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	var err error
	if l.broken == nil {
		err = l.append(Event{Kind: KindLog, Detail: detailEnd}, nil)
	}
	err = errors.Join(err, l.file.Sync(), l.file.Close())
	l.file = nil
	if err != nil {
		return fmt.Errorf("closing the audit record: %w", err)
	}
	return nil
}

func (l *Log) usable() error {
	if l.file == nil {
		return errClosed
	}
	return l.broken
}

// append writes one line, all of it or nothing.
func (l *Log) append(e Event, removed *Removed) error {
	if e.Time.IsZero() {
		e.Time = l.o.Now()
	}
	e.Time = e.Time.UTC()
	line, err := json.Marshal(Record{Seq: l.seq + 1, Prev: l.head, Session: l.session, Removed: removed, Event: e.bounded()})
	if err != nil {
		return fmt.Errorf("writing the audit record: %w", err)
	}
	if _, err := l.file.Write(append(line, '\n')); err != nil {
		err = fmt.Errorf("writing the audit record: %w", err)
		if terr := l.file.Truncate(l.size); terr != nil {
			l.broken = fmt.Errorf("%w; and what was written of the line cannot be taken back: %w", err, terr)
		}
		return err
	}
	l.seq, l.head = l.seq+1, hash(line)
	l.size += int64(len(line)) + 1
	return nil
}

// rotate goes on in another file, and removes the oldest when there are too many.
func (l *Log) rotate() error {
	if err := l.file.Sync(); err != nil {
		return fmt.Errorf("writing the audit record to disk: %w", err)
	}
	full := Removed{File: fileName(l.session, l.number), Seq: l.seq, Hash: l.head}
	if err := l.next(detailContinued); err != nil {
		return err
	}
	l.synced = l.o.Now()
	l.old = append(l.old, full)
	if len(l.old) < l.o.Files {
		return nil
	}
	oldest := l.old[0]
	if err := l.append(Event{Kind: KindLog, Detail: detailRemoved}, &oldest); err != nil {
		return err
	}
	l.old = l.old[1:]
	if err := os.Remove(filepath.Join(l.dir, oldest.File)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing an old audit record: %w", err)
	}
	return nil
}

// next begins another file. On an error the log is as it was.
func (l *Log) next(detail string) error {
	path := filepath.Join(l.dir, fileName(l.session, l.number+1))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("beginning an audit record: %w", err)
	}
	before, size := l.file, l.size
	l.file, l.size = f, 0
	// Tells Prune and Verify that the session runs. It ends with the process.
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		err = l.append(Event{Kind: KindLog, Detail: detail}, nil)
	}
	if err != nil {
		l.file, l.size = before, size
		return errors.Join(fmt.Errorf("beginning an audit record: %w", err), f.Close(), os.Remove(path))
	}
	l.number++
	if before != nil {
		if err := before.Close(); err != nil {
			return fmt.Errorf("closing a full audit record: %w", err)
		}
	}
	return syncDir(l.dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("writing the directory of audit records to disk: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("writing the directory of audit records to disk: %w", err)
	}
	return nil
}

func fileName(session string, number int) string {
	return fmt.Sprintf("%s.%06d.jsonl", session, number)
}

// hash is of a line without its line break.
func hash(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:])
}
