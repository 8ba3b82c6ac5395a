package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/configs"
	"github.com/gondolin-go/gondolin/images"
	"github.com/gondolin-go/gondolin/sandbox"
)

// example is what README.md shows under "As a library".
func example(ctx context.Context) error {
	store, err := images.OpenStore(images.DefaultDir())
	if err != nil {
		return err
	}
	// Builds the default image the first time and finds it from then on.
	img, err := images.Build(ctx, store, images.Spec{Name: images.DefaultTag}, images.NewProgress(os.Stderr))
	if err != nil {
		return err
	}
	release, err := img.Use() // nobody removes it meanwhile
	if err != nil {
		return err
	}
	defer release()

	host, err := sandbox.NewHost(ctx, sandbox.HostOptions{})
	if err != nil {
		return err
	}
	defer host.Close()
	s, err := host.Create(ctx, sandbox.Options{
		Image: sandbox.Image{
			ID: img.ID(), Kernel: img.Path(images.KernelFile),
			Modules: img.Path(images.ModulesFile), RootDisk: img.Path(images.RootFile),
		},
		Limits: sandbox.Limits{MemoryMiB: 1024},
	})
	if err != nil {
		return err
	}
	defer s.Close()
	exit, err := s.Run(ctx, sandbox.Command{Shell: "uname -a", Stdout: os.Stdout, Stderr: os.Stderr})
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "exit code", exit.Code)
	return nil
}

func TestTheReadmesLibraryExampleIsTheOneThatCompiles(t *testing.T) {
	require.NotNil(t, example)
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	_, shown, found := strings.Cut(string(readme), "```go\n")
	require.True(t, found)
	shown, _, _ = strings.Cut(shown, "```")
	source, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	_, compiled, _ := strings.Cut(string(source), "// example is what README.md shows")
	_, compiled, _ = strings.Cut(compiled, "\n")
	compiled, _, _ = strings.Cut(compiled, "\nfunc Test")
	require.Equal(t, strings.TrimSpace(compiled), strings.TrimSpace(shown))
}

func TestTheReadmesConfigurationsLoad(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	parts := strings.Split(string(readme), "```yaml\n")[1:]
	require.NotEmpty(t, parts)
	for _, part := range parts {
		text, _, _ := strings.Cut(part, "```")
		file := filepath.Join(t.TempDir(), "config.yaml")
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		c, err := configs.Load(configs.Sources{File: file, Env: []string{"HOME=/home/me"}})
		require.NoError(t, err, "%s", text)
		require.Empty(t, c.Warnings(), "%s", text)
	}
}
