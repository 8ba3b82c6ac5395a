package main

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gondolin-go/gondolin/configs"
	"github.com/gondolin-go/gondolin/tools"
)

// quietError is a failure that has been told already.
type quietError struct{ error }

func (a *app) newPolicyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "policy", Short: "Check and explain what machines may reach",
		Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.policyCheck(), a.policyExplain())
	return cmd
}

// policyChecked is `policy check --json`; what no rule matches is denied.
type policyChecked struct {
	Rules    []policyRule      `json:"rules"`
	Warnings []configs.Problem `json:"warnings"`
}

type policyRule struct {
	Name   string `json:"name"`
	Action string `json:"action"`
	What   string `json:"what"`
}

func (a *app) policyCheck() *cobra.Command {
	var strict, asJSON bool
	cmd := a.withFlags(&cobra.Command{
		Use: "check [FILE]", Short: "List the rules in force, and what is wrong or suspicious about them",
		Long: `List the rules in the order in which they are looked at, and report every mistake (exit
code 2) and what is probably not meant: rules that no request reaches, wildcards that
are wider than they look, secrets for hosts that no rule allows. With --strict the latter
ends with 1.`,
		Args: arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			src := a.sources()
			if len(args) > 0 {
				src.File = args[0]
			}
			c, err := configs.Load(src)
			if err != nil {
				return err
			}
			view := newPolicyView(c)
			out, o, warnings := cmd.OutOrStdout(), view.Overview(), append([]configs.Problem{}, c.Warnings()...)
			if asJSON {
				rules := []policyRule{}
				for _, r := range o.Rules {
					rules = append(rules, policyRule{r.Name, r.Action, r.What})
				}
				if err := printJSON(out, policyChecked{rules, warnings}); err != nil {
					return err
				}
			} else {
				for _, r := range o.Rules {
					fmt.Fprintf(out, "%-5s  %s  (%s)\n", r.Action, r.What, r.Name)
				}
				fmt.Fprintf(out, "deny   everything else\n")
				for _, w := range warnings {
					fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", w)
				}
			}
			if strict && len(warnings) > 0 {
				return quietError{errors.New("there are warnings")}
			}
			return nil
		},
	})
	cmd.Flags().BoolVar(&strict, "strict", false, "end with 1 if there is a warning")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// explanation is what `policy explain --json` prints.
type explanation struct {
	Kind    string `json:"kind"`
	Value   string `json:"value"`
	Verdict string `json:"verdict"`
	Rule    string `json:"rule,omitempty"`
	Reason  string `json:"reason"`
	Nearest string `json:"nearest,omitempty"`
	Remedy  string `json:"remedy,omitempty"`
}

func (a *app) policyExplain() *cobra.Command {
	var asJSON bool
	var kind string
	cmd := a.withFlags(&cobra.Command{
		Use: "explain WHAT…", Short: "Say whether a request would be allowed, and why",
		Long: `Say whether something would be allowed, by which rule, and what would help if not. The
exit code is 0 if it is, 1 if it is refused or a human would be asked, and 2 for a mistake.
WHAT is one of

  [METHOD] URL                        GET if not said
  ssh [USER@]HOST[:PORT] [COMMAND]    a shell without a command
  HOST:PORT                           a mapped TCP connection
  NAME                                its lookup
  /PATH                               a path of the machine
  --kind secret NAME[@HOST]           a secret and a host that may get it`,
		Args: arguments(1, anyNumber),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.load()
			if err != nil {
				return err
			}
			view := newPolicyView(c)
			value := strings.Join(args, " ")
			r, err := view.Explain("", kind, value)
			if err != nil {
				return usageError{named(cmd, err)}
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), explanation{r.Kind, value, r.Verdict, r.Rule, r.Reason, r.Nearest, r.Remedy})
			} else {
				err = printRuling(cmd, r)
			}
			if err == nil && r.Verdict != "allow" {
				err = quietError{errors.New(r.Verdict)}
			}
			return err
		},
	})
	jsonFlag(cmd, &asJSON)
	cmd.Flags().StringVar(&kind, "kind", "", "what WHAT is: http, ssh, tcp, dns, path or secret (default: guessed)")
	return cmd
}

func printRuling(cmd *cobra.Command, r tools.Ruling) error {
	out := cmd.OutOrStdout()
	_, err := fmt.Fprintf(out, "%s: %s\n", r.Verdict, r.Reason)
	for _, line := range []struct{ name, text string }{{"rule", r.Rule}, {"nearest", r.Nearest}, {"remedy", r.Remedy}} {
		if line.text != "" && err == nil {
			_, err = fmt.Fprintf(out, "  %-8s %s\n", line.name, line.text)
		}
	}
	return err
}

// newPolicyView is a view without sessions.
func newPolicyView(c *configs.Config) policyView {
	return policyView{&sandboxes{config: c, log: slog.New(slog.DiscardHandler), cwd: workingDirectory(), policies: newPolicies(c)}}
}
