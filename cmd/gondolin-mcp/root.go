package main

import (
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/gondolin-go/gondolin/configs"
	"github.com/gondolin-go/gondolin/docs"
)

// version is set by the linker.
var version = ""

func programVersion() string {
	if version != "" {
		return version
	}
	if v := buildVersion(); v != "" && v != "(devel)" {
		return v
	}
	return "dev"
}

// app is what the commands share.
type app struct {
	env   []string
	wrong error          // of a call for help with what is no command; help itself cannot fail
	file  string         // of --config
	flags *pflag.FlagSet // of the configuration, shared by the commands that have them
}

func (a *app) sources() configs.Sources {
	return configs.Sources{File: a.file, Env: a.env, Flags: a.flags}
}

func (a *app) load() (*configs.Config, error) { return configs.Load(a.sources()) }

// loadHere also judges what depends on this machine.
func (a *app) loadHere() (*configs.Config, error) {
	src := a.sources()
	src.Here = true
	return configs.Load(src)
}

// everywhere are the flags that make sense for every command.
var everywhere = []string{"cache-dir", "log-level"}

// withFlags gives a command all flags of the configuration. They are the same
// flags in each command, so it does not matter which one they were given to.
func (a *app) withFlags(cmd *cobra.Command) *cobra.Command {
	a.flags.VisitAll(func(f *pflag.Flag) {
		for _, name := range everywhere {
			if f.Name == name {
				return
			}
		}
		cmd.Flags().AddFlag(f)
	})
	return cmd
}

func newRoot(env []string) (*cobra.Command, *app) {
	a := &app{env: env, flags: configs.Flags()}
	root := a.withFlags(&cobra.Command{
		Use:   "gondolin-mcp",
		Short: "An MCP server that gives an agent a virtual machine of its own",
		Long: `gondolin-mcp is an MCP server: its tools run commands and work on files in a
virtual machine that belongs to the session alone.`,
		Version:       programVersion(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if in, ok := cmd.InOrStdin().(*os.File); ok && term.IsTerminal(int(in.Fd())) {
				plugIn(cmd.OutOrStdout())
				return nil
			}
			return a.serve(cmd)
		},
	})
	root.SetVersionTemplate("gondolin-mcp {{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		if cmd.HasSubCommands() {
			if a.wrong = noSuchCommand(cmd, cmd.Flags().Args()); a.wrong != nil {
				return
			}
		}
		help(cmd, args)
	})
	root.PersistentFlags().StringVar(&a.file, "config", "", "configuration `file` (default: $GONDOLIN_CONFIG, or gondolin/config.yaml in the user's configuration directory)")
	for _, name := range everywhere {
		root.PersistentFlags().AddFlag(a.flags.Lookup(name))
	}
	root.AddCommand(
		a.withFlags(&cobra.Command{
			Use: "serve", Short: "Speak MCP on standard input and output",
			Long: `Speak MCP on standard input and output until the input ends or a signal comes;
then every session is closed. The default image is built at the first session
when it is missing (image.auto_build). Sessions have the directories that the client
names as its workspace at /workspace; --workspace=DIR names another one, and
--workspace=none leaves it out.`,
			Args: arguments(0, 0),
			RunE: func(cmd *cobra.Command, _ []string) error { return a.serve(cmd) },
		}),
		newImagesCommand(func() (string, error) {
			c, err := a.load()
			if err != nil {
				return "", err
			}
			return c.ImageDir(), nil
		}),
		a.newRunCommand(),
		a.newShellCommand(),
		a.newListCommand(),
		a.newAttachCommand(),
		a.newExecCommand(),
		a.newCpCommand(),
		a.newLogsCommand(),
		a.newInspectCommand(),
		a.newKillCommand(),
		a.newSnapshotCommand(),
		a.newGCCommand(),
		newManCommand(),
		a.newConfigCommand(),
		a.newDoctorCommand(),
		a.newPolicyCommand(),
		a.newAuditCommand(),
		a.newSSHCommand(),
		&cobra.Command{
			Use: "version", Short: "Print the version", Args: arguments(0, 0),
			Run: func(cmd *cobra.Command, _ []string) {
				fmt.Fprintf(cmd.OutOrStdout(), "gondolin-mcp %s (%s, %s/%s)\n", programVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			},
		},
	)
	return root, a
}

// plugIn tells a person who started the server by hand what it is for.
func plugIn(w io.Writer) {
	self, err := os.Executable()
	if err != nil {
		self = "gondolin-mcp"
	}
	fmt.Fprint(w, "gondolin-mcp is an MCP server: an agent's client starts it and speaks to it.\n\n")
	for _, s := range docs.Setups(self) {
		where := s.Where
		if where == "" {
			where = "In a shell:"
		}
		fmt.Fprintf(w, "%-15s %s\n                %s\n", s.Client+":", where, s.Text)
	}
	fmt.Fprint(w, `
The agent sees the client's workspace at /workspace. A client that names none:
add --workspace=/path/to/it after serve; --workspace=none shows nothing.

Use a machine yourself:  gondolin-mcp shell, gondolin-mcp run -- COMMAND
Check this machine:      gondolin-mcp doctor
Build the image before:  gondolin-mcp images build
Change the defaults:     gondolin-mcp config example > config.yaml
                         gondolin-mcp config path    (says where it belongs)
Everything else:         gondolin-mcp help
`)
}
