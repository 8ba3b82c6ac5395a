//go:build linux

// Command guest is everything that runs inside the VM: one static multi-call
// binary that is /init of the initramfs. As process 1 it is pid1, which starts
// the other parts of itself by argv[0].
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/gondolin-go/gondolin/guest/near"
	"github.com/gondolin-go/gondolin/guest/pid1"
	"github.com/gondolin-go/gondolin/guest/sandboxd"
	"github.com/gondolin-go/gondolin/guest/sandboxfs"
	"github.com/gondolin-go/gondolin/guest/sandboxingress"
	"github.com/gondolin-go/gondolin/guest/sandboxssh"
)

// version is set by the build.
var version = "dev"

func main() {
	switch {
	case os.Getpid() == 1:
		pid1.Main()
	case os.Args[0] == "sandboxd":
		near.Calm()
		sandboxd.Main(context.Background(), version)
	case os.Args[0] == "sandboxfs":
		near.Calm()
		sandboxfs.Main()
	case os.Args[0] == "sandboxingress":
		near.Calm()
		sandboxingress.Main(version)
	case os.Args[0] == "sandboxssh":
		sandboxssh.Main(os.Stdin, os.Stdout)
	default:
		fmt.Fprintln(os.Stderr, "gondolin guest", version, "runs as process 1 of a gondolin VM and is of no use elsewhere")
		os.Exit(2)
	}
}
