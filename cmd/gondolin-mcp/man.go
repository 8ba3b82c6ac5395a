package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// newManCommand is for those who package the program.
func newManCommand() *cobra.Command {
	return &cobra.Command{
		Use: "man DIRECTORY", Short: "Write manual pages, one for each command", Hidden: true,
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("making the directory of the manual pages: %w", err)
			}
			root := cmd.Root()
			root.InitDefaultCompletionCmd()
			root.DisableAutoGenTag = true
			date := time.Unix(0, 0) // the same text for the same program
			return doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "gondolin-mcp " + programVersion(), Manual: "gondolin-mcp", Date: &date}, args[0])
		},
	}
}
