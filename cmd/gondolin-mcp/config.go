package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gondolin-go/gondolin/configs"
	"github.com/gondolin-go/gondolin/vfs"
)

func (a *app) newConfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "Show, check and explain the configuration",
		Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.configShow(), a.configCheck(), a.configPath(), configExample(), configRules())
	return cmd
}

func (a *app) configShow() *cobra.Command {
	var origin, asJSON bool
	cmd := a.withFlags(&cobra.Command{
		Use: "show", Short: "Print what is in force, from all layers",
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load()
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			switch {
			case asJSON && origin:
				return printJSON(out, c.Entries())
			case asJSON:
				return printJSON(out, c)
			}
			text, err := c.YAML(origin)
			if err != nil {
				return err
			}
			_, err = out.Write(text)
			return err
		},
	})
	cmd.Flags().BoolVar(&origin, "origin", false, "also say where each value comes from")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// checked is `config check --json`.
type checked struct {
	File     string            `json:"file,omitempty"`
	OK       bool              `json:"ok"`
	Mistakes []configs.Problem `json:"mistakes"`
	Warnings []configs.Problem `json:"warnings"`
	NotHere  []string          `json:"not_here"` // why no session can start on this machine
}

// newChecked has lists in place of nothing.
func newChecked(file string, mistakes, warnings []configs.Problem, notHere []string) checked {
	return checked{
		File: file, OK: len(mistakes) == 0, Mistakes: append([]configs.Problem{}, mistakes...),
		Warnings: append([]configs.Problem{}, warnings...), NotHere: append([]string{}, notHere...),
	}
}

func (a *app) configCheck() *cobra.Command {
	var asJSON bool
	cmd := a.withFlags(&cobra.Command{
		Use: "check [FILE]", Short: "Report every mistake in a file, or in what is in force",
		Long: `Report every mistake, each with its place and a remedy, and exit with 2 if there
is one; so is a directory to be mounted that does not exist. With FILE only that
file is read; without, all layers are. What is no mistake but keeps sessions from
starting on this machine is a warning.`,
		Args: arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			src := a.sources()
			if len(args) > 0 {
				// Only HOME, for paths that begin with ~/.
				src = configs.Sources{File: args[0], Env: only(a.env, "HOME")}
			}
			src.Here = true
			c, err := configs.Load(src)
			var wrong *configs.Error
			if asJSON && errors.As(err, &wrong) {
				file, _ := configs.Locate(src)
				return errors.Join(err, printJSON(cmd.OutOrStdout(), newChecked(file, wrong.Problems, nil, nil)))
			}
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), newChecked(c.File(), nil, c.Warnings(), impossible(c)))
			}
			what := c.File()
			if what == "" {
				what = "the configuration (there is no file)"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: ok\n", what)
			for _, w := range c.Warnings() {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", w)
			}
			for _, problem := range impossible(c) {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: no session can start with this setting here: %s\n", problem)
			}
			return nil
		},
	})
	jsonFlag(cmd, &asJSON)
	return cmd
}

func only(env []string, name string) []string {
	var list []string
	for _, v := range env {
		if strings.HasPrefix(v, name+"=") {
			list = append(list, v)
		}
	}
	return list
}

func (a *app) configPath() *cobra.Command {
	return &cobra.Command{
		Use: "path", Short: "Print which file is read, or where it would be looked for",
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, by := configs.Locate(a.sources())
			if path == "" {
				return errors.New("there is no place for a file: HOME is not set; use --config or GONDOLIN_CONFIG")
			}
			if by == "" {
				fmt.Fprintln(cmd.ErrOrStderr(), "there is no such file yet; `gondolin-mcp config example` prints one")
			}
			fmt.Fprintln(cmd.OutOrStdout(), path)
			return nil
		},
	}
}

func configExample() *cobra.Command {
	return &cobra.Command{
		Use: "example [NAME]", Short: "Print an example file, by default the one with every key",
		Long: "Print an example file: " + strings.Join(configs.Examples(), ", ") + ".",
		Args: arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := "full"
			if len(args) > 0 {
				name = args[0]
			}
			text, err := configs.Example(name)
			if err != nil {
				return usageError{err}
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
}

// ruleView is a rule of mounts in `config rules --json`.
type ruleView struct {
	Pattern string   `json:"pattern"`
	Except  []string `json:"except,omitempty"`
}

func ruleViews(rules []vfs.Rule) []ruleView {
	views := make([]ruleView, len(rules))
	for i, r := range rules {
		views[i] = ruleView{r.Pattern, r.Except}
	}
	return views
}

func configRules() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "rules", Short: "Print what is protected and hidden in mounts by default",
		Long: `Print the default rules of mounts: what a machine can read and not change
(protect), and what it does not see (hide). A mount's protect.remove and
hide.remove leave patterns of these out.`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string][]ruleView{"protect": ruleViews(vfs.DefaultProtect()), "hide": ruleViews(vfs.DefaultHide())})
			}
			for _, list := range []struct {
				key   string
				rules []vfs.Rule
			}{{"protect", vfs.DefaultProtect()}, {"hide", vfs.DefaultHide()}} {
				fmt.Fprintf(cmd.OutOrStdout(), "%s:\n", list.key)
				for _, r := range list.rules {
					except := ""
					if len(r.Except) > 0 {
						except = "  (not " + strings.Join(r.Except, ", ") + ")"
					}
					if _, err := fmt.Fprintf(cmd.OutOrStdout(), "  %s%s\n", r.Pattern, except); err != nil {
						return err
					}
				}
			}
			return nil
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}
