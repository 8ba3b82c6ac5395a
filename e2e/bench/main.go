// Command bench measures what gondolin promises and prints a table beside the
// figures to beat, and JSON lines (name, unit, median, min, max, n) to a file.
//
//	go run ./e2e/bench [--json FILE] [--part NAME[,NAME]] [--only SUBSTRING] [--image NAME] [--program PATH]
//
// It measures through the library, on the default image, with the accelerator
// that sessions get on this machine.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/adrg/xdg"

	"github.com/gondolin-go/gondolin/images"
	"github.com/gondolin-go/gondolin/sandbox"
)

func main() {
	jsonFile := flag.String("json", "", "file for the JSON lines")
	part := flag.String("part", "", "measure only these parts, separated by commas: "+strings.Join(partNames(), ", "))
	only := flag.String("only", "", "measure only rows whose name holds this")
	name := flag.String("image", "default", "image to measure with")
	program := flag.String("program", "bin/gondolin-mcp", "the program, for what its users wait for")
	flag.Parse()
	chosen := partNames()
	if *part != "" {
		chosen = strings.Split(*part, ",")
		for _, p := range chosen {
			if !slices.Contains(partNames(), p) {
				fmt.Fprintf(os.Stderr, "bench: no part %q; there are %s\n", p, strings.Join(partNames(), ", "))
				os.Exit(2)
			}
		}
	}
	if err := run(context.Background(), *jsonFile, chosen, *only, *name, *program); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// parts are what can be measured by itself, each with its set-up.
var parts = []struct {
	name    string
	measure func(*bench, context.Context) error
}{
	{"running", (*bench).running}, {"attaching", (*bench).attaching}, {"reached", (*bench).reached}, {"creating", (*bench).creating},
	{"files", (*bench).files}, {"network", (*bench).network}, {"idle", (*bench).idle},
}

func partNames() []string {
	names := make([]string, len(parts))
	for i, p := range parts {
		names[i] = p.name
	}
	return names
}

// row is one figure. The bar and the original's figure are of the same unit;
// zero means that there is none.
type row struct {
	Name     string  `json:"name"`
	Unit     string  `json:"unit"`
	Median   float64 `json:"median"`
	Min      float64 `json:"min"`
	Max      float64 `json:"max"`
	N        int     `json:"n"`
	Original float64 `json:"original,omitempty"`
	Bar      float64 `json:"bar,omitempty"`
	more     bool    // more is better
}

func (r *row) verdict() string {
	switch {
	case r.Bar == 0:
		return ""
	case r.more && r.Median >= r.Bar, !r.more && r.Median <= r.Bar:
		return "reached"
	}
	return "short"
}

// bench collects rows.
type bench struct {
	host    *sandbox.Host
	dir     string // of the sockets of all hosts
	program string
	image   sandbox.Image
	only    string
	rows    []row
}

func (b *bench) skips(r row) bool { return b.only != "" && !strings.Contains(r.Name, b.only) }

// measure takes n samples and enters them as a row.
func (b *bench) measure(r row, n int, sample func() (float64, error)) error {
	if b.skips(r) {
		return nil
	}
	fmt.Fprintf(os.Stderr, "measuring %s\n", r.Name)
	values := make([]float64, 0, n)
	for range n {
		v, err := sample()
		if err != nil {
			return fmt.Errorf("%s: %w", r.Name, err)
		}
		values = append(values, v)
	}
	slices.Sort(values)
	r.Median, r.Min, r.Max, r.N = values[n/2], values[0], values[n-1], n
	b.rows = append(b.rows, r)
	return nil
}

func run(ctx context.Context, jsonFile string, chosen []string, only, name, program string) error {
	store, err := images.OpenStore(filepath.Join(xdg.CacheHome, "gondolin", "images"))
	if err != nil {
		return err
	}
	img, err := store.Get(name)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "gnd")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	host, err := sandbox.NewHost(ctx, sandbox.HostOptions{RuntimeDir: dir, Register: "bench", TemplateFirst: true})
	if err != nil {
		return err
	}
	defer host.Close()
	b := &bench{host: host, dir: dir, program: program, only: only, image: sandbox.Image{
		ID: img.ID(), Kernel: img.Path(images.KernelFile), Modules: img.Path(images.ModulesFile), RootDisk: img.Path(images.RootFile),
	}}
	for _, part := range parts {
		if !slices.Contains(chosen, part.name) {
			continue
		}
		if err := part.measure(b, ctx); err != nil {
			return err
		}
	}
	print(b.rows)
	return write(jsonFile, b.rows)
}

func print(rows []row) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\tunit\tmedian\tmin\tmax\tn\toriginal\tmust reach\t")
	for _, r := range rows {
		optional := func(v float64) string {
			if v == 0 {
				return "-"
			}
			return fmt.Sprintf("%g", v)
		}
		fmt.Fprintf(w, "%s\t%s\t%.2f\t%.2f\t%.2f\t%d\t%s\t%s\t%s\n", r.Name, r.Unit, r.Median, r.Min, r.Max, r.N, optional(r.Original), optional(r.Bar), r.verdict())
	}
	w.Flush()
}

func write(path string, rows []row) error {
	if path == "" {
		return nil
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	enc := json.NewEncoder(f)
	for _, r := range rows {
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	return f.Close()
}
