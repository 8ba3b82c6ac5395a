package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gondolin-go/gondolin/sandbox"
)

// place is one end of a copy.
type place struct {
	session string // "": this computer
	path    string // "-": standard input or output
}

// placeOf reads SESSION:PATH or PATH. A path of this computer that has a colon before its
// first slash is written ./a:b.
func placeOf(text string) place {
	if session, p, ok := strings.Cut(text, ":"); ok && session != "" && !strings.Contains(session, "/") {
		return place{session: session, path: p}
	}
	return place{path: text}
}

func (a *app) newCpCommand() *cobra.Command {
	return a.registryFlags(&cobra.Command{
		Use: "cp SOURCE TARGET", Short: "Copy files and directories into a session and out of it",
		Long: `Copy a file or directory into the machine of a session or out of it. One of both is SESSION:PATH. A
target that is a directory, or ends with a slash, gets the source under its own name; else the
target is the new name. - is standard input or output, for a single file. A path of this
computer with a colon in its first part is written ./a:b.

What comes out of a machine was chosen by it: links that lead out of what is copied, devices and
set-user-id bits do not arrive.`,
		Example: `  gondolin-mcp cp ./src 4uuv:/root/
  gondolin-mcp cp 4uuv:/root/result.json .
  gondolin-mcp cp 4uuv:/var/log/dpkg.log - | tail`,
		Args: arguments(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, to := placeOf(args[0]), placeOf(args[1])
			var problem string
			switch {
			case from.session == "" && to.session == "":
				problem = "neither end is in a session: write one as SESSION:PATH"
			case from.session != "" && to.session != "":
				problem = "both ends are in sessions: copy to this computer first"
			case from.path == "" || to.path == "":
				problem = "a path is missing behind the colon"
			}
			if problem != "" {
				return usageError{named(cmd, errors.New(problem))}
			}
			return a.withSession(cmd, from.session+to.session, func(s *sandbox.Attached) error {
				if to.session != "" {
					return copyIn(cmd.Context(), s, from.path, to.path, cmd.InOrStdin())
				}
				return copyOut(cmd.Context(), s, from.path, to.path, cmd.OutOrStdout())
			})
		},
	})
}

func copyIn(ctx context.Context, s *sandbox.Attached, from, to string, stdin io.Reader) error {
	if from == "-" {
		_, err := s.WriteFile(ctx, to, stdin, sandbox.WriteOptions{})
		return err
	}
	st, err := os.Stat(from)
	if err != nil {
		return err
	}
	guest, err := s.Stat(ctx, to)
	switch {
	case err == nil && guest.Type == "dir", strings.HasSuffix(to, "/"):
		if base := filepath.Base(filepath.Clean(from)); base != "." && base != ".." && base != "/" {
			return s.CopyIn(ctx, from, to)
		}
		if from, err = filepath.Abs(from); err != nil { // its name is what it is called
			return err
		}
		return s.CopyIn(ctx, from, to)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case st.IsDir() && err == nil:
		return fmt.Errorf("%s is a directory and %s:%s is none", from, s.ID(), to)
	case st.IsDir():
		return copyInAs(ctx, s, from, to)
	}
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	mode := uint32(st.Mode().Perm())
	_, err = s.WriteFile(ctx, to, f, sandbox.WriteOptions{Mode: &mode})
	return err
}

// copyInAs copies a directory under another name: beside its place first, then by a rename.
func copyInAs(ctx context.Context, s *sandbox.Attached, from, to string) (err error) {
	from, err = filepath.Abs(from)
	if err != nil {
		return err
	}
	young := path.Join(path.Dir(to), ".gondolin-cp-"+rand.Text()[:8])
	if err := s.Mkdir(ctx, young, 0o700, false); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Remove(ctx, young, true)) }()
	if err := s.CopyIn(ctx, from, young); err != nil {
		return err
	}
	return s.Rename(ctx, path.Join(young, filepath.Base(from)), to, false)
}

func copyOut(ctx context.Context, s *sandbox.Attached, from, to string, stdout io.Writer) error {
	st, err := s.Stat(ctx, from)
	if err != nil {
		return err
	}
	if to == "-" {
		if st.Type == "dir" {
			return fmt.Errorf("%s:%s is a directory: use `gondolin-mcp exec %s -- tar c %s`", s.ID(), from, s.ID(), from)
		}
		f, _, err := s.Open(ctx, from, 0, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(stdout, f)
		return err
	}
	target, err := os.Stat(to)
	switch {
	case err == nil && target.IsDir():
		return s.CopyOut(ctx, from, to, 0)
	case strings.HasSuffix(to, "/"):
		return fmt.Errorf("%s is no directory", to)
	case err == nil && st.Type == "dir":
		return fmt.Errorf("%s:%s is a directory and %s is none", s.ID(), from, to)
	}
	young, err := os.MkdirTemp(filepath.Dir(to), ".gondolin-cp-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(young)
	if err := s.CopyOut(ctx, from, young, 0); err != nil {
		return err
	}
	source := young // all of a machine's root
	if path.Clean(from) != "/" {
		made, err := os.ReadDir(young) // under its name, which . and .. do not tell
		if err != nil || len(made) != 1 {
			return errors.Join(fmt.Errorf("%s:%s did not arrive", s.ID(), from), err)
		}
		source = filepath.Join(young, made[0].Name())
	}
	return os.Rename(source, to)
}
