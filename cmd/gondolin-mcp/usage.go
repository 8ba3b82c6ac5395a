package main

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// usageError is a mistake in how a command was called, as against one in doing what it says.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// named puts the command before an error, without the program, which main puts before everything.
func named(cmd *cobra.Command, err error) error {
	_, path, below := strings.Cut(cmd.CommandPath(), " ")
	if !below {
		return err
	}
	return fmt.Errorf("%s: %w", path, err)
}

// flagError is for mistakes in flags that cobra finds.
func flagError(c *cobra.Command, err error) error {
	return usageError{named(c, fmt.Errorf("%w; see `%s --help`", err, c.CommandPath()))}
}

const anyNumber = math.MaxInt

// arguments checks how many arguments a command got.
func arguments(low, high int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		var err error
		switch n := len(args); {
		case n < low:
			err = fmt.Errorf("it needs %s; see `%s --help`", counted(low, "argument"), cmd.CommandPath())
		case n <= high:
			return nil
		case strayValue(cmd, args[high]) != nil:
			err = strayValue(cmd, args[high])
		case high == 0:
			err = fmt.Errorf("it takes no arguments, and %q is one; see `%s --help`", args[0], cmd.CommandPath())
		default:
			err = fmt.Errorf("it takes at most %s, and %q is one too many; see `%s --help`", counted(high, "argument"), args[high], cmd.CommandPath())
		}
		return usageError{named(cmd, err)}
	}
}

// strayValue recognises the value of a flag that is true or false: such a flag
// stands alone, and a value after a space is an argument. So it is with --workspace.
func strayValue(cmd *cobra.Command, arg string) error {
	if f := cmd.Flags().Lookup("workspace"); f != nil && f.Changed && f.Value.String() == f.NoOptDefVal {
		return fmt.Errorf("--workspace takes its value after a =: write --workspace=%s", arg)
	}
	if !slices.Contains([]string{"true", "false", "yes", "no", "on", "off", "0", "1"}, strings.ToLower(arg)) {
		return nil
	}
	var err error
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.NoOptDefVal != "" && err == nil {
			err = fmt.Errorf("--%s takes its value after a =: write --%s=true or --%s=false", f.Name, f.Name, f.Name)
		}
	})
	return err
}

// noSuchCommand refuses what is no command, with what was probably meant.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if err := strayValue(cmd, args[0]); err != nil {
		return usageError{named(cmd, err)}
	}
	cmd.SuggestionsMinimumDistance = 2
	hint := "see `" + cmd.CommandPath() + " --help`"
	if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		hint = "did you mean " + strings.Join(s, " or ") + "?"
	}
	return usageError{fmt.Errorf("unknown command %q for %q: %s", args[0], cmd.CommandPath(), hint)}
}
