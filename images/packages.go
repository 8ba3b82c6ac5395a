package images

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// keptSettings are the settings of the machine's apt that say how to reach and trust the mirrors. What
// else apt is told there (hooks, cleaning rules) is about this machine and stays here.
var keptSettings = []string{
	"Acquire::http", "Acquire::https", "Acquire::ftp", "Acquire::mirror", "Acquire::Retries", "Acquire::Check-Valid-Until",
	"Acquire::Check-Date", "Acquire::Max-ValidTime", "Acquire::Min-ValidTime", "Acquire::ForceIPv4", "Acquire::ForceIPv6",
	"Acquire::By-Hash", "Acquire::AllowInsecureRepositories", "Acquire::AllowWeakRepositories", "Acquire::Queue-Mode",
	"Acquire::PDiffs", "APT::Authentication", "APT::Get::AllowUnauthenticated",
}

// aptSettings picks them out of `apt-config dump`. Its output is itself valid configuration.
func aptSettings(dump string) string {
	var b strings.Builder
	for line := range strings.Lines(dump) {
		key, _, _ := strings.Cut(line, " ")
		for _, kept := range keptSettings {
			rest, ok := strings.CutPrefix(strings.ToLower(key), strings.ToLower(kept))
			if ok && (rest == "" || strings.HasPrefix(rest, "::")) && !strings.HasSuffix(strings.TrimSpace(line), ` "";`) {
				b.WriteString(strings.TrimRight(line, "\n") + "\n")
				break
			}
		}
	}
	b.WriteString("Acquire::Languages \"none\";\n")
	return b.String()
}

// leftOut is what the packages bring that a throw-away machine has no use for; licences stay.
var leftOut = []string{
	"path-exclude=/usr/share/man/*", "path-exclude=/usr/share/info/*", "path-exclude=/usr/share/locale/*",
	"path-include=/usr/share/locale/locale.alias", "path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright",
	"path-exclude=/usr/share/lintian/*", "path-exclude=/usr/share/bash-completion/*",
}

// joinLocale puts the parts of the locale C.UTF-8, which commands have by default, into the archive that the C
// library looks into first. Each program that asks for its locale then opens one file in place of thirty (a shell
// starts in 11 ms instead of 19 under emulation). An image is as good without it, so that a failure is none.
const joinLocale = `--customize-hook=if [ -d "$1/usr/lib/locale/C.utf8" ]; then chroot "$1" localedef --add-to-archive /usr/lib/locale/C.utf8 || :; fi`

// packagesRecipe changes when the same packages give another image than before.
const packagesRecipe = 2

// applyPackages lets mmdebstrap install the packages and lays its tar stream over the tree.
func (b *builder) applyPackages(ctx context.Context, t *tree) (SourceInfo, error) {
	src := b.spec.Source
	suite := src.Suite
	if suite == "" {
		suite = b.os.Codename
	}
	info := SourceInfo{Kind: KindPackages, Suite: suite, Packages: src.Packages}
	if b.os.family() != "debian" && b.os.family() != "ubuntu" {
		return info, fmt.Errorf("a package image needs a Debian or Ubuntu machine, this one is %q; build from an OCI image with --from oci:REF", b.os.ID)
	}
	all, err := readSources("/etc/apt")
	if err != nil {
		return info, err
	}
	sources, err := distributionSources(all, suite)
	if err != nil {
		return info, err
	}
	stdin, err := b.sourceLines(sources)
	if err != nil {
		return info, err
	}
	args, err := b.mmdebstrapArgs(ctx, suite)
	if err != nil {
		return info, err
	}
	b.progress.Note(fmt.Sprintf("installing %d packages of %s %s with mmdebstrap", len(src.Packages), b.os.ID, suite))
	if err := b.runMmdebstrap(ctx, t, stdin, args); err != nil {
		return info, err
	}
	return info, cleanPackages(t, guestSources(sources))
}

// sourceLines is the sources.list that mmdebstrap reads; inline keys become files in the work directory.
func (b *builder) sourceLines(sources []aptSource) (string, error) {
	var out strings.Builder
	for i, s := range sources {
		key := s.signedBy
		if s.inlineKey() {
			key = b.work.path(fmt.Sprintf("key-%d.asc", i))
			var block strings.Builder
			for line := range strings.Lines(s.signedBy) {
				if line = strings.TrimSpace(line); line == "." { // deb822's way of writing an empty line
					line = ""
				}
				block.WriteString(line + "\n")
			}
			if err := os.WriteFile(key, []byte(block.String()), 0o644); err != nil {
				return "", fmt.Errorf("writing an apt key: %w", err)
			}
		}
		out.WriteString(s.line(key) + "\n")
	}
	return out.String(), nil
}

func (b *builder) mmdebstrapArgs(ctx context.Context, suite string) ([]string, error) {
	dump, err := run(ctx, b.work.dir, nil, "apt-config", "dump")
	if err != nil {
		return nil, fmt.Errorf("reading apt's settings: %w", err)
	}
	settings := aptSettings(string(dump))
	// Credentials for mirrors live beside apt's sources; mmdebstrap's apt would look in the new root.
	for key, path := range map[string]string{"netrc": "/etc/apt/auth.conf", "netrcparts": "/etc/apt/auth.conf.d/"} {
		if _, err := os.Stat(path); err == nil {
			settings += fmt.Sprintf("Dir::Etc::%s %q;\n", key, path)
		}
	}
	// In a file that only we can read: settings may hold a proxy's password, arguments are public.
	conf := b.work.path("apt-settings")
	if err := os.WriteFile(conf, []byte(settings), 0o600); err != nil {
		return nil, fmt.Errorf("writing apt's settings: %w", err)
	}
	mode := "unshare"
	if os.Geteuid() == 0 {
		mode = "root"
	}
	args := []string{"--mode=" + mode, "--variant=minbase", "--format=tar", "--aptopt=" + conf}
	for _, rule := range leftOut {
		args = append(args, "--dpkgopt="+rule)
	}
	include := "--include=" + strings.Join(b.spec.Source.Packages, ",")
	return append(args, joinLocale, include, suite, "-", "-"), nil
}

func (b *builder) runMmdebstrap(outer context.Context, t *tree, sources string, args []string) error {
	ctx, cancel := context.WithCancel(outer)
	defer cancel()
	cmd, err := command(ctx, b.work.dir, "mmdebstrap", args...)
	if err != nil {
		return err
	}
	// The same day gives the same time stamps.
	epoch := time.Now().UTC().Truncate(24 * time.Hour).Unix()
	cmd.Env = append(cmd.Env, fmt.Sprintf("SOURCE_DATE_EPOCH=%d", epoch))
	if os.Geteuid() == 0 {
		isolateMounts(cmd)
		// Where a killed build's remains are found again. Without root the user name space's ids could not
		// reach a private directory, and mmdebstrap has to use the usual place.
		cmd.Env = append(cmd.Env, "TMPDIR="+b.work.dir)
	}
	cmd.Stdin = strings.NewReader(sources)
	said := &noteWriter{progress: b.progress}
	cmd.Stderr = said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("running mmdebstrap: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("running mmdebstrap: %w", err)
	}
	buffered := bufio.NewReaderSize(out, 1<<20)
	var aerr error
	// The stream only begins when everything is installed; an empty one is mmdebstrap failing early.
	if _, perr := buffered.Peek(4096); perr == nil {
		task := b.progress.Start("unpacking root file system", 0)
		aerr = t.applyLayer(ctx, "the output of mmdebstrap", &taskReader{ctx: ctx, r: buffered, task: task}, false)
		task.Done()
	} else if !errors.Is(perr, io.EOF) {
		aerr = perr
	}
	if aerr != nil {
		cancel() // it would wait for ever for someone to read
	}
	werr := reap(ctx, cmd)
	if aerr != nil && outer.Err() != nil {
		return toolError(outer, "mmdebstrap", nil, aerr, &said.tail)
	}
	if werr != nil && aerr == nil {
		err := toolError(ctx, "mmdebstrap", nil, werr, &said.tail)
		if os.Geteuid() != 0 {
			err = fmt.Errorf("%w (without root it needs user name spaces and the package uidmap)", err)
		}
		return err
	}
	return aerr
}

// noteWriter turns mmdebstrap's information lines into notes and keeps the rest for an error.
type noteWriter struct {
	progress Progress
	tail     tail
	line     []byte
}

func (w *noteWriter) Write(p []byte) (int, error) {
	_, _ = w.tail.Write(p)
	w.line = append(w.line, p...)
	for {
		i := bytes.IndexByte(w.line, '\n')
		if i < 0 {
			if len(w.line) > 64<<10 {
				w.line = nil
			}
			return len(p), nil
		}
		text := string(w.line[:i])
		w.line = w.line[i+1:]
		for _, known := range []string{"running apt-get", "downloading", "extracting", "installing", "cleaning", "creating"} {
			if strings.HasPrefix(text, "I: "+known) {
				w.progress.Note("mmdebstrap: " + strings.TrimPrefix(text, "I: "))
			}
		}
	}
}

// cleanPackages removes what is this build's or this machine's own from a package root.
func cleanPackages(t *tree, sources string) error {
	if t.lookup("etc/ssl/certs/ca-certificates.crt") == nil && t.lookup("usr/sbin/update-ca-certificates") != nil {
		return errors.New("the package ca-certificates left no /etc/ssl/certs/ca-certificates.crt; the build of the image is broken")
	}
	t.removeMatching("etc/ssh", "ssh_host_*")
	t.removeMatching("var/lib/apt/lists", "*")
	t.removeMatching("var/cache/apt", "*")
	t.removeMatching("var/log", "*.log")
	t.removeMatching("etc/apt/apt.conf.d", "99mmdebstrap") // may hold a proxy's password
	t.removeMatching("etc/apt/sources.list.d", "*")
	t.removeMatching("var/lib/dbus", "machine-id")
	if t.lookup("etc/apt") != nil {
		if err := t.putFile("etc/apt/sources.list", 0o644, sources); err != nil {
			return err
		}
	}
	for _, empty := range []string{"etc/machine-id", "etc/resolv.conf"} {
		if err := t.putFile(empty, 0o644, ""); err != nil {
			return err
		}
	}
	return t.putFile("etc/hostname", 0o644, "gondolin\n")
}

// removeMatching drops names of a directory; a directory that is not there has none.
func (t *tree) removeMatching(dir, pattern string) {
	parts, err := cleanName(dir)
	if err != nil {
		return
	}
	d, err := t.dir(parts, false)
	if err != nil {
		return
	}
	for name := range d.children {
		if ok, _ := filepath.Match(pattern, name); ok { // the patterns are well formed
			d.unlink(name)
		}
	}
}
