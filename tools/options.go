package tools

import (
	"log/slog"
	"time"

	"github.com/gondolin-go/gondolin/sandbox"
)

// Options say what a server offers. Only Sandboxes is required.
type Options struct {
	Sandboxes Sandboxes
	Logger    *slog.Logger // default: discards
	Version   string       // of the program, told to clients; default "dev"

	// Policy tells what the machine may reach. Default: that it has no network.
	Policy Policy
	// Image names what the machine runs, such as "Debian 12 with python3, git
	// and ripgrep". Default: "Linux".
	Image string

	// Mounts are those that every session has, for the model to know.
	Mounts []Mount
	// Roots says that sessions mount the client's roots at RootsPath: one there, several
	// below it.
	Roots bool

	// Expose lets agents give the user URLs for servers of their machine.
	Expose bool

	// User is whom commands run as. Default: root.
	User string

	// Limits are the most that the session tool may ask for, told in its schema.
	// A zero field is unbounded here; Sandboxes still judges.
	Limits sandbox.Limits

	MaxTimeout  time.Duration // longest timeout_ms of exec, default 1 h
	MaxLong     int           // long calls at once, 1 to 64, default 64
	MaxQuick    int           // other calls at once, 1 to 32, default 32
	MaxMessage  int           // longest line from the client in bytes, default 16 MiB
	MaxUnderWay int           // unanswered requests at once, default 512
}

// RootsPath is where Options.Roots puts the client's roots.
const RootsPath = "/workspace"

const (
	// spoolBytes is how much of a command's output stays for job_output.
	spoolBytes = 8 << 20
	// imageBytes is the largest picture that read_file shows.
	imageBytes = 5 << 20
	// workers is the most that mcp-go allows. MaxLong and MaxQuick together
	// stay below it: the rest only ever says that too much is under way.
	workers = 100
)

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	setDefault(&o.Version, "dev")
	setDefault(&o.Policy, Policy(noPolicy{}))
	setDefault(&o.Image, "Linux")
	setDefault(&o.User, "root")
	setDefault(&o.MaxTimeout, time.Hour)
	setDefault(&o.MaxMessage, 16<<20)
	setDefault(&o.MaxUnderWay, 512)
	if o.MaxLong < 1 || o.MaxLong > 64 {
		o.MaxLong = 64
	}
	if o.MaxQuick < 1 || o.MaxQuick > 32 {
		o.MaxQuick = 32
	}
	return o
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
