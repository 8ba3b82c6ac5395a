package images

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/adrg/xdg"
	"github.com/google/renameio/v2"
)

// DefaultTag names the image that sessions use when nothing else is asked for.
const DefaultTag = "default"

// DefaultDir is where images live unless the caller says otherwise. It makes nothing.
func DefaultDir() string { return filepath.Join(xdg.CacheHome, "gondolin", "images") }

// Store is a directory of images. Any number of processes may use one at the same time.
type Store struct {
	dir string
}

// OpenStore opens the image store in dir and makes it when it is not there. A store that can only be
// read serves images too; building into it fails.
func OpenStore(dir string) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("opening image store %s: %w", dir, err)
	}
	for _, sub := range []string{"", "tags", "specs", "locks", "blobs", "kernels", "tmp"} {
		p := filepath.Join(abs, sub)
		if err := os.MkdirAll(p, 0o700); err != nil {
			if info, serr := os.Stat(abs); serr == nil && info.IsDir() && sub != "" {
				break // read-only store
			}
			return nil, fmt.Errorf("opening image store: %w", err)
		}
	}
	return &Store{dir: abs}, nil
}

// Dir is the store's absolute path.
func (s *Store) Dir() string { return s.dir }

var (
	tagName  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	idPrefix = regexp.MustCompile(`^[0-9a-f]{6,64}$`)
	idBegin  = regexp.MustCompile(`^[0-9a-f]{1,5}$`)
)

// checkTag refuses names that are no plain file name or could be taken for an id.
func checkTag(name string) error {
	if !tagName.MatchString(name) {
		return fmt.Errorf("image name %q: use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit", name)
	}
	if hexDigest.MatchString(name) {
		return fmt.Errorf("image name %q looks like an image id; choose another", name)
	}
	return nil
}

// NotFoundError says that a reference names no image, and which there are.
type NotFoundError struct {
	Ref   string
	Store string
	Have  []string // "name (id)" of what is there
}

func (e *NotFoundError) Error() string {
	have := "it is empty"
	if len(e.Have) > 0 {
		have = "it has " + strings.Join(e.Have, ", ")
	}
	remedy := "`gondolin-mcp images list` shows what there is"
	switch {
	case e.Ref == DefaultTag:
		remedy = "`gondolin-mcp images build` makes it"
	case tagName.MatchString(e.Ref) && !idPrefix.MatchString(e.Ref):
		// The source is not ours to guess: without one the default packages would get this name.
		remedy = "`gondolin-mcp images build --name " + e.Ref + " --from SOURCE` makes it"
	}
	return fmt.Sprintf("no image %q in %s (%s); %s", e.Ref, e.Store, have, remedy)
}

// tooShort refuses the beginning of an id that is too short to name an image safely.
func tooShort(ref string, ids []string) error {
	if !idBegin.MatchString(ref) {
		return nil
	}
	for _, id := range ids {
		if strings.HasPrefix(id, ref) {
			return fmt.Errorf("image id %q is too short: give at least 6 digits of it, such as %.12s", ref, id)
		}
	}
	return nil
}

// Get finds an image by name, id, or a prefix of an id of at least 6 digits that fits only one.
func (s *Store) Get(ref string) (*Image, error) {
	if ref == "" {
		ref = DefaultTag
	}
	tags, err := s.tags()
	if err != nil {
		return nil, err
	}
	if id, ok := tags[ref]; ok {
		img, err := s.load(id)
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("image %q points to %.12s, which is gone; build it again under this name, or `gondolin-mcp images remove %s`", ref, id, ref)
		}
		return img, err
	}
	ids, err := s.ids()
	if err != nil {
		return nil, err
	}
	if idPrefix.MatchString(ref) {
		fits := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return !strings.HasPrefix(id, ref) })
		switch len(fits) {
		case 0:
		case 1:
			return s.load(fits[0])
		default:
			for i := range fits {
				fits[i] = fits[i][:min(len(ref)+6, 64)]
			}
			return nil, fmt.Errorf("image id %q is ambiguous: %s", ref, strings.Join(fits, ", "))
		}
	}
	if err := tooShort(ref, ids); err != nil {
		return nil, err
	}
	return nil, &NotFoundError{Ref: ref, Store: s.dir, Have: describe(ids, tags)}
}

func describe(ids []string, tags map[string]string) []string {
	var have []string
	for _, id := range ids {
		short := id[:12]
		var names []string
		for name, tid := range tags {
			if tid == id {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		if len(names) > 0 {
			short = strings.Join(names, ", ") + " (" + short + ")"
		}
		have = append(have, short)
	}
	return have
}

// List returns all images, newest first. One that cannot be read is reported in the error beside the
// others.
func (s *Store) List() ([]*Image, error) {
	ids, err := s.ids()
	if err != nil {
		return nil, err
	}
	var list []*Image
	var errs []error
	for _, id := range ids {
		img, err := s.load(id)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, img)
	}
	slices.SortStableFunc(list, func(a, b *Image) int { return b.Manifest.Created.Compare(a.Manifest.Created) })
	return list, errors.Join(errs...)
}

func (s *Store) ids() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("reading image store: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && hexDigest.MatchString(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// tags maps names to ids.
func (s *Store) tags() (map[string]string, error) {
	dir := filepath.Join(s.dir, "tags")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading image names: %w", err)
	}
	tags := map[string]string{}
	for _, e := range entries {
		if !tagName.MatchString(e.Name()) {
			continue // renameio's temporary files
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("reading image name %s: %w", e.Name(), err)
		}
		if id := strings.TrimSpace(string(b)); hexDigest.MatchString(id) {
			tags[e.Name()] = id
		}
	}
	return tags, nil
}

// Tag gives an image a name, taking it from whichever had it.
func (s *Store) Tag(name, id string) error {
	if err := checkTag(name); err != nil {
		return err
	}
	if err := renameio.WriteFile(filepath.Join(s.dir, "tags", name), []byte(id+"\n"), 0o644); err != nil {
		return fmt.Errorf("naming image %.12s %q: %w", id, name, err)
	}
	return nil
}

// load reads one image by its full id.
func (s *Store) load(id string) (*Image, error) {
	dir := filepath.Join(s.dir, id)
	b, err := os.ReadFile(filepath.Join(dir, ManifestFile))
	if err != nil {
		return nil, fmt.Errorf("image %.12s: %w", id, err)
	}
	m, err := ParseManifest(b)
	if err != nil {
		return nil, fmt.Errorf("image %.12s in %s: %w; `gondolin-mcp images remove %.12s` and build it again", id, dir, err, id)
	}
	if m.ID != id {
		return nil, fmt.Errorf("image %.12s in %s carries the manifest of %.12s; remove it and build it again", id, dir, m.ID)
	}
	return &Image{Manifest: m, dir: dir, store: s}, nil
}
