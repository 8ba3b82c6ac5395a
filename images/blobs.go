package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// fetcher downloads blobs into the store's cache. A download that was cut off, in this run or an
// earlier one, goes on where it stopped.
type fetcher struct {
	store    *Store
	repo     name.Repository
	progress Progress
	client   *http.Client // made at the first blob
}

// fetchAttempts bounds the attempts that bring nothing; one that made progress does not count.
const fetchAttempts = 4

// open returns a blob from the cache, after it was downloaded and its digest was found right.
func (f *fetcher) open(ctx context.Context, l v1.Layer) (io.ReadCloser, error) {
	digest, err := l.Digest()
	if err != nil {
		return nil, fmt.Errorf("layer digest: %w", err)
	}
	size, err := l.Size()
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", digest, err)
	}
	if digest.Algorithm != "sha256" {
		return nil, fmt.Errorf("layer %s: digest algorithm %s is not supported", digest, digest.Algorithm)
	}
	unlock, err := f.store.lock(ctx, "blob-"+digest.Hex[:2], true)
	if err != nil {
		return nil, err
	}
	defer unlock()
	final := filepath.Join(f.store.dir, "blobs", digest.Hex)
	if blob, err := os.Open(final); err == nil {
		got, n, herr := hashFile(ctx, final, Quiet.Start("", 0))
		if herr == nil && got == digest.Hex && n == size {
			now := time.Now()
			_ = os.Chtimes(final, now, now) // for gc's idea of age
			return blob, nil
		}
		_ = blob.Close()
		_ = os.Remove(final)
	}
	partial := final + ".partial"
	if err := f.download(ctx, digest, size, partial); err != nil {
		return nil, fmt.Errorf("downloading layer %s from %s: %w", digest, f.repo, err)
	}
	got, _, err := hashFile(ctx, partial, Quiet.Start("", 0))
	if err != nil {
		return nil, fmt.Errorf("checking layer %s: %w", digest, err)
	}
	if got != digest.Hex {
		_ = os.Remove(partial)
		return nil, fmt.Errorf("layer %s from %s is damaged: expected sha256 %s, got %s; what was downloaded is dropped, try again",
			digest, f.repo, digest.Hex, got)
	}
	if err := os.Rename(partial, final); err != nil {
		return nil, fmt.Errorf("keeping layer %s: %w", digest, err)
	}
	return os.Open(final)
}

func (f *fetcher) download(ctx context.Context, digest v1.Hash, size int64, partial string) error {
	out, err := os.OpenFile(partial, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	have, err := out.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if have > size {
		have = 0
	}
	task := f.progress.Start(fmt.Sprintf("downloading layer %.12s", digest.Hex), size)
	defer task.Done()
	if have > 0 {
		f.progress.Note(fmt.Sprintf("resuming layer %.12s at %s", digest.Hex, FormatBytes(have)))
		task.Add(have)
	}
	for failures := 0; have < size; {
		n, err := f.part(ctx, digest, out, have, size, task)
		if n < 0 { // the server began again from the start
			task.Add(-have)
			have, n = 0, -n-1
		}
		have += n
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil && have < size:
			err = io.ErrUnexpectedEOF
			fallthrough
		case err != nil:
			var fatal *transport.Error
			if errors.As(err, &fatal) && !fatal.Temporary() {
				return err
			}
			if failures++; n > 0 {
				failures = 1
			}
			if failures >= fetchAttempts {
				return fmt.Errorf("%w (%s of %s are kept, the next try goes on from there)", err, FormatBytes(have), FormatBytes(size))
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Duration(failures*failures) * 100 * time.Millisecond):
			}
		}
	}
	if err := out.Truncate(size); err != nil {
		return err
	}
	return out.Sync()
}

// part fetches from offset have on. A negative result -n-1 says that n bytes were written from the
// beginning, because the server does not do ranges.
func (f *fetcher) part(ctx context.Context, digest v1.Hash, out *os.File, have, size int64, task Task) (int64, error) {
	client, err := f.http(ctx)
	if err != nil {
		return 0, err
	}
	url := fmt.Sprintf("%s://%s/v2/%s/blobs/%s", f.repo.Scheme(), f.repo.RegistryStr(), f.repo.RepositoryStr(), digest)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	// Ranges count bytes as stored; no transport may repack them.
	req.Header.Set("Accept-Encoding", "identity")
	if have > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", have, size-1)) // open-ended ones are not understood everywhere
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if err := transport.CheckError(res, http.StatusOK, http.StatusPartialContent); err != nil {
		return 0, err
	}
	restarted := have > 0 && (res.StatusCode == http.StatusOK || rangeStart(res) != have)
	if restarted {
		if res.StatusCode == http.StatusPartialContent {
			return 0, fmt.Errorf("the registry sent the range %q instead of one from %d", res.Header.Get("Content-Range"), have)
		}
		if err := out.Truncate(0); err != nil {
			return 0, err
		}
		have = 0
	}
	if _, err := out.Seek(have, io.SeekStart); err != nil {
		return 0, err
	}
	n, err := io.Copy(out, &taskReader{ctx: ctx, r: io.LimitReader(res.Body, size-have), task: task})
	if restarted {
		return -n - 1, err
	}
	return n, err
}

// rangeStart is the first byte that a partial answer holds, -1 when it does not say.
func rangeStart(res *http.Response) int64 {
	rest, _ := strings.CutPrefix(res.Header.Get("Content-Range"), "bytes ")
	first, _, _ := strings.Cut(rest, "-")
	n, err := strconv.ParseInt(first, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// http logs in to the registry with the user's own credentials, as docker and others keep them.
func (f *fetcher) http(ctx context.Context) (*http.Client, error) {
	if f.client != nil {
		return f.client, nil
	}
	auth, err := authn.Resolve(ctx, authn.DefaultKeychain, f.repo)
	if err != nil {
		return nil, fmt.Errorf("looking for credentials: %w", err)
	}
	rt, err := transport.NewWithContext(ctx, f.repo.Registry, auth, http.DefaultTransport, []string{f.repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, err
	}
	f.client = &http.Client{Transport: rt}
	return f.client, nil
}
