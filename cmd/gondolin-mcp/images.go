package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"runtime/debug"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/gondolin-go/gondolin/images"
)

// newImagesCommand is `gondolin-mcp images`. The store's directory is asked for when a command runs, since
// it may come from flags and configuration.
func newImagesCommand(storeDir func() (string, error)) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "images",
		Short: "Build and look after guest images",
		Args:  noSuchCommand,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SetFlagErrorFunc(flagError)
	open := func() (*images.Store, error) {
		dir, err := storeDir()
		if err != nil {
			return nil, err
		}
		return images.OpenStore(dir)
	}
	cmd.AddCommand(imagesBuild(open), imagesList(open), imagesInspect(open), imagesVerify(open), imagesRemove(open), imagesGC(open))
	return cmd
}

type openStore func() (*images.Store, error)

func imagesBuild(open openStore) *cobra.Command {
	var spec images.Spec
	var from string
	var maxBytes byteSize
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Build an image, by default the one that sessions use",
		Long: `Build an image from this machine's Debian or Ubuntu mirrors (the default), or from an OCI image, a
directory or an archive; no container engine is needed. An image that was built before from the same
source is not built again unless --force is given.

Without further flags it builds the image that sessions use, which is called "default". Any other image
needs --name; --name default makes it the one that sessions use.`,
		Example: `  gondolin-mcp images build
  gondolin-mcp images build --name node --from oci:docker.io/library/node:22
  gondolin-mcp images build --name mine --from dir:./rootfs`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkBuildFlags(cmd); err != nil {
				return usageError{named(cmd, err)}
			}
			src, err := images.ParseSource(from)
			if err != nil {
				return usageError{named(cmd, err)}
			}
			if src.Kind != images.KindPackages && (len(spec.Source.Packages) > 0 || spec.Source.Suite != "") {
				return usageError{named(cmd, fmt.Errorf("--packages and --suite go with --from packages, not with %s", src))}
			}
			src.Packages, src.Suite = spec.Source.Packages, spec.Source.Suite
			spec.Source = src
			spec.Limits.Bytes = int64(maxBytes)
			spec.Version = buildVersion()
			store, err := open()
			if err != nil {
				return err
			}
			began := time.Now()
			img, err := images.Build(cmd.Context(), store, spec, images.NewProgress(cmd.ErrOrStderr()))
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "image %.12s is ready after %s (%s)\n",
				img.ID(), lasted(time.Since(began)), images.FormatBytes(img.Manifest.TotalSize()))
			if asJSON {
				return printJSON(cmd.OutOrStdout(), row(img))
			}
			fmt.Fprintln(cmd.OutOrStdout(), img.ID())
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&spec.Name, "name", images.DefaultTag, "name of the image, required with flags that make it another than the default one")
	f.StringVar(&from, "from", images.KindPackages, "packages, oci:REF, oci-layout:DIR[:TAG], docker-archive:FILE, dir:DIR or tar:FILE")
	f.StringSliceVar(&spec.Source.Packages, "packages", nil, "packages to install instead of the default list")
	f.StringVar(&spec.Source.Suite, "suite", "", "distribution release (default: this machine's)")
	f.StringVar(&spec.Kernel.Image, "kernel-from", "", "take the kernel of this image")
	f.StringVar(&spec.Kernel.File, "kernel", "", "kernel file (bzImage or vmlinux), with --modules")
	f.StringVar(&spec.Kernel.Modules, "modules", "", "its /lib/modules/VERSION directory")
	f.StringVar(&spec.Arch, "arch", "", "amd64 or arm64 (default: this machine's)")
	f.BoolVar(&spec.Force, "force", false, "build even if the same image was built before")
	f.Var(&maxBytes, "max-bytes", "refuse a root file system that unpacks to more, such as 4GiB (default 32GiB)")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// makesOther are the flags that make another image than the default one.
var makesOther = []string{"from", "packages", "suite", "kernel-from", "kernel", "modules", "arch"}

// checkBuildFlags refuses flags whose value is missing, as from a variable that a script never set, and
// keeps an image that was made otherwise from taking the name of the default one unasked.
func checkBuildFlags(cmd *cobra.Command) error {
	other := ""
	for _, name := range makesOther {
		f := cmd.Flags().Lookup(name)
		switch value := strings.Trim(f.Value.String(), "[]"); {
		case !f.Changed:
		case value == "":
			return fmt.Errorf("--%s is empty: give it a value, or leave it out", name)
		case name != "from" || value != images.KindPackages:
			other += fmt.Sprintf(" --%s %s", name, value)
		}
	}
	switch name := cmd.Flags().Lookup("name"); {
	case name.Changed && name.Value.String() == "":
		return errors.New("--name is empty: give the image a name")
	case other != "" && !name.Changed:
		return fmt.Errorf("the image needs a name: write `gondolin-mcp images build --name NAME%s`; --name %s makes it the one that sessions use", other, images.DefaultTag)
	}
	return nil
}

func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return ""
}

// listed is one row of `images list --json`.
type listed struct {
	ID       string           `json:"id"`
	Names    []string         `json:"names"`
	Bytes    int64            `json:"bytes"`
	LastUsed time.Time        `json:"last_used"`
	Manifest *images.Manifest `json:"manifest"`
}

func row(img *images.Image) listed {
	names := img.Names()
	if names == nil {
		names = []string{}
	}
	return listed{ID: img.ID(), Names: names, Bytes: img.Manifest.TotalSize(), LastUsed: img.LastUsed(), Manifest: img.Manifest}
}

func imagesList(open openStore) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the images of the store",
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := open()
			if err != nil {
				return err
			}
			list, lerr := store.List() // with what is unreadable beside the rest
			if asJSON {
				rows := []listed{}
				for _, img := range list {
					rows = append(rows, row(img))
				}
				return errors.Join(printJSON(cmd.OutOrStdout(), rows), lerr)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tID\tSIZE\tARCH\tKERNEL\tCREATED\tSOURCE")
			for _, img := range list {
				m, names := img.Manifest, strings.Join(img.Names(), ",")
				if names == "" {
					names = "-"
				}
				fmt.Fprintf(w, "%s\t%.12s\t%s\t%s\t%s\t%s\t%s\n", names, m.ID, images.FormatBytes(m.TotalSize()), m.Arch,
					m.Kernel.Version, m.Created.Local().Format("2006-01-02 15:04"), describeSource(m.Source))
			}
			return errors.Join(w.Flush(), lerr)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func describeSource(s images.SourceInfo) string {
	if s.Kind == images.KindPackages {
		return fmt.Sprintf("%s of %s", counted(len(s.Packages), "package"), s.Suite)
	}
	return s.Kind + ":" + s.Ref
}

func imagesInspect(open openStore) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "inspect [REF]", Short: "Show what an image is made of",
		Args: arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := open()
			if err != nil {
				return err
			}
			img, err := store.Get(strings.Join(args, ""))
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), row(img))
			}
			return printImage(cmd.OutOrStdout(), img)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func printImage(out io.Writer, img *images.Image) error {
	m := img.Manifest
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(key, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", key, fmt.Sprintf(format, args...)) }
	line("id", "%s", m.ID)
	line("names", "%s", strings.Join(img.Names(), ", "))
	line("directory", "%s", img.Dir())
	line("architecture", "%s", m.Arch)
	line("created", "%s", m.Created.Local().Format(time.RFC3339))
	line("source", "%s", describeSource(m.Source))
	if m.Source.Digest != "" {
		line("source digest", "%s", m.Source.Digest)
	}
	if len(m.Source.Packages) > 0 {
		line("packages", "%s", strings.Join(m.Source.Packages, " "))
	}
	line("kernel", "%s (%s)", m.Kernel.Version, m.Kernel.Format)
	if m.Kernel.Package != "" {
		line("kernel package", "%s %s", m.Kernel.Package, m.Kernel.PackageVersion)
	}
	line("modules", "%s", strings.Join(m.Kernel.Modules, " "))
	for _, f := range m.Files {
		line(f.Name, "%s  sha256:%s", images.FormatBytes(f.Size), f.SHA256)
	}
	return w.Flush()
}

// verified is one row of `images verify --json`.
type verified struct {
	Ref   string `json:"ref"`
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
}

func imagesVerify(open openStore) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "verify [REF...]", Short: "Hash every file of the named images, or of all",
		Args: arguments(0, anyNumber),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := open()
			if err != nil {
				return err
			}
			var errs []error
			if len(args) == 0 {
				list, err := store.List()
				errs = append(errs, err)
				for _, img := range list {
					args = append(args, img.ID())
				}
			}
			rows, progress := []verified{}, images.NewProgress(cmd.ErrOrStderr())
			for _, ref := range args {
				err := store.Verify(cmd.Context(), ref, progress)
				switch {
				case err != nil:
					errs = append(errs, err)
					rows = append(rows, verified{Ref: ref, Error: err.Error()})
				case asJSON:
					rows = append(rows, verified{Ref: ref, OK: true})
				default:
					fmt.Fprintf(cmd.OutOrStdout(), "%s\tok\n", ref)
				}
			}
			if asJSON {
				errs = append(errs, printJSON(cmd.OutOrStdout(), rows))
			}
			return errors.Join(errs...)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func imagesRemove(open openStore) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "remove REF...", Aliases: []string{"rm"}, Short: "Remove images, or one of an image's several names",
		Args: arguments(1, anyNumber),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := open()
			if err != nil {
				return err
			}
			rows, errs := []images.Removed{}, []error(nil)
			for _, ref := range args {
				gone, err := store.Remove(cmd.Context(), ref)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				rows = append(rows, gone)
			}
			return errors.Join(append(errs, printRemoved(cmd.OutOrStdout(), rows, asJSON))...)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

// printRemoved prints what was removed by name.
func printRemoved(out io.Writer, rows []images.Removed, asJSON bool) error {
	if asJSON {
		return printJSON(out, rows)
	}
	for _, r := range rows {
		if _, err := fmt.Fprintf(out, "removed %s %s (%s)\n", r.Kind, r.Name, images.FormatBytes(r.Bytes)); err != nil {
			return err
		}
	}
	return nil
}

func imagesGC(open openStore) *cobra.Command {
	var days int
	var policy images.GCPolicy
	var asJSON bool
	cmd := &cobra.Command{
		Use: "gc", Short: "Remove unnamed images, downloads, old kernels and remains of killed builds",
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if days < 0 {
				return usageError{named(cmd, errors.New("--keep-days must not be negative"))}
			}
			policy.Keep = time.Duration(days) * 24 * time.Hour
			store, err := open()
			if err != nil {
				return err
			}
			report, gerr := store.GC(cmd.Context(), policy)
			return errors.Join(printGC(cmd.OutOrStdout(), report, policy.DryRun, asJSON), gerr)
		},
	}
	cmd.Flags().IntVar(&days, "keep-days", 0, "keep unnamed images and downloads that were used within so many days")
	cmd.Flags().BoolVar(&policy.DryRun, "dry-run", false, "only say what would go")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// printGC prints what was, or would be, removed.
func printGC(out io.Writer, report images.GCReport, dry, asJSON bool) error {
	if asJSON {
		return printJSON(out, report)
	}
	verb := "removed"
	if dry {
		verb = "would remove"
	}
	for _, r := range report.Removed {
		fmt.Fprintf(out, "%s %s %s (%s)\n", verb, r.Kind, r.Name, images.FormatBytes(r.Bytes))
	}
	for _, b := range report.Busy {
		fmt.Fprintf(out, "in use: %s\n", b)
	}
	_, err := fmt.Fprintf(out, "%s %s in all\n", verb, images.FormatBytes(report.Bytes()))
	return err
}

// jsonFlag adds --json.
func jsonFlag(cmd *cobra.Command, asJSON *bool) {
	cmd.Flags().BoolVar(asJSON, "json", false, "print JSON")
}

func printJSON(w io.Writer, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	// It leaves some controls of terminals as they are; they are in strings only.
	text := steering.ReplaceAllStringFunc(b.String(), func(c string) string { return fmt.Sprintf(`\u%04x`, []rune(c)[0]) })
	_, err := io.WriteString(w, text)
	return err
}

var steering = regexp.MustCompile(`[\x{7f}-\x{9f}]`)
