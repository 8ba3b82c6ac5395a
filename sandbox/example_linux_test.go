package sandbox_test

import (
	"context"
	"fmt"
	"hash/crc32"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"

	"github.com/adrg/xdg"

	"github.com/gondolin-go/gondolin/images"
	"github.com/gondolin-go/gondolin/netguard"
	"github.com/gondolin-go/gondolin/netguard/policy"
	"github.com/gondolin-go/gondolin/sandbox"
	"github.com/gondolin-go/gondolin/vfs"
)

// defaultImage is the image that `gondolin-mcp images build` makes.
func defaultImage() sandbox.Image {
	store, err := images.OpenStore(filepath.Join(xdg.CacheHome, "gondolin", "images"))
	check(err)
	img, err := store.Get(images.DefaultTag)
	check(err)
	return sandbox.Image{
		ID: img.ID(), Kernel: img.Path(images.KernelFile), Modules: img.Path(images.ModulesFile), RootDisk: img.Path(images.RootFile),
	}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// start makes a session. The runtime directory is one of its own here, so that the examples
// meet no other program; without it, it is the user's.
func start(o sandbox.Options) (s *sandbox.Session, end func()) {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "gnd")
	check(err)
	host, err := sandbox.NewHost(ctx, sandbox.HostOptions{RuntimeDir: dir})
	check(err)
	o.Image = defaultImage()
	s, err = host.Create(ctx, o)
	check(err)
	return s, func() {
		check(host.Close()) // and all its sessions
		check(os.RemoveAll(dir))
	}
}

// A command runs in a machine of its own. That it fails is no error.
func Example() {
	s, end := start(sandbox.Options{Env: map[string]string{"GREETING": "hello"}})
	defer end()
	exit, err := s.Run(context.Background(), sandbox.Command{
		Shell: "echo $GREETING from $(uname -s); exit 3", Stdout: os.Stdout, Stderr: os.Stderr,
	})
	check(err)
	fmt.Println("exit code", exit.Code)
	// Output:
	// hello from Linux
	// exit code 3
}

// answers is a provider of one's own: a directory in which every name is a file. What a provider
// cannot do it leaves to vfs.Unsupported.
type answers struct{ vfs.Unsupported }

func (answers) Attr(context.Context) (vfs.Attr, error) {
	return vfs.Attr{Ino: 1, Mode: fs.ModeDir | 0o555, Nlink: 2}, nil
}

func (answers) Lookup(_ context.Context, name string) (vfs.Node, error) {
	if name == "nothing" {
		return nil, syscall.ENOENT
	}
	return answer{name: name}, nil
}

type answer struct {
	vfs.Unsupported
	name string
}

func (a answer) text() string { return "you asked for " + a.name + "\n" }

func (a answer) Attr(context.Context) (vfs.Attr, error) {
	return vfs.Attr{Ino: 2 + uint64(crc32.ChecksumIEEE([]byte(a.name))), Mode: 0o444, Nlink: 1, Size: int64(len(a.text()))}, nil
}

func (a answer) Open(context.Context, int) (vfs.File, error) { return answerFile{answer: a}, nil }

type answerFile struct {
	vfs.UnsupportedFile
	answer
}

func (f answerFile) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	text := f.text()
	return copy(p, text[min(off, int64(len(text))):]), nil
}

func (f answerFile) Attr(ctx context.Context) (vfs.Attr, error) { return f.answer.Attr(ctx) }

func (f answerFile) SetAttr(context.Context, vfs.Change) (vfs.Attr, error) {
	return vfs.Attr{}, syscall.EROFS
}

// Files of the guest can be whatever a program of the host makes up.
func ExampleMount() {
	s, end := start(sandbox.Options{Mounts: []sandbox.Mount{{Path: "/ask", Root: vfs.ReadOnly(answers{}), ReadOnly: true}}})
	defer end()
	_, err := s.Run(context.Background(), sandbox.Command{
		Shell: "cat /ask/bread /ask/games; cat /ask/nothing || echo none", Stdout: os.Stdout,
	})
	check(err)
	// Output:
	// you asked for bread
	// you asked for games
	// none
}

// A hook sees each request before it leaves, and may change or refuse it. Here the server is on
// this computer, which a rule has to open by address.
func ExampleNetwork() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s for %s\n", r.URL.Path, r.Header.Get("X-On-Behalf-Of"))
	}))
	defer server.Close()
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	check(err)
	rules, err := policy.Compile(policy.Spec{Rules: []policy.Rule{{
		Action: policy.ActionAllow, Hosts: []string{"api.example.com"}, Ports: []string{port}, AllowAddresses: []string{"127.0.0.1"},
	}}})
	check(err)
	s, end := start(sandbox.Options{Network: &sandbox.Network{
		Policy:   rules,
		Upstream: netguard.Upstream{Hosts: map[string]netip.Addr{"api.example.com": netip.MustParseAddr("127.0.0.1")}},
		Hooks: netguard.Hooks{OnRequest: func(_ context.Context, r *http.Request) error {
			if r.URL.Path == "/admin" {
				return fmt.Errorf("not from here")
			}
			r.Header.Set("X-On-Behalf-Of", "alice")
			return nil
		}},
	}})
	defer end()
	_, err = s.Run(context.Background(), sandbox.Command{
		Shell:  "curl -s http://api.example.com:$PORT/v1; curl -s -o /dev/null -w '%{http_code}\n' http://api.example.com:$PORT/admin",
		Env:    map[string]string{"PORT": port},
		Stdout: os.Stdout,
	})
	check(err)
	// Output:
	// /v1 for alice
	// 403
}

// Copies of a session go on where it stands, each with files and processes of its own: an agent can
// try several ways from one point.
func ExampleSession_Fork() {
	ctx := context.Background()
	s, end := start(sandbox.Options{})
	defer end()
	_, err := s.Run(ctx, sandbox.Command{Shell: "echo common > /root/notes"})
	check(err)
	forked, err := s.Fork(ctx, sandbox.ForkOptions{Count: 2})
	check(err)
	for i, way := range forked.Sessions {
		_, err := way.Run(ctx, sandbox.Command{Shell: fmt.Sprintf("echo way %d >> /root/notes; paste -sd, /root/notes", i+1), Stdout: os.Stdout})
		check(err)
		check(way.Close())
	}
	_, err = s.Run(ctx, sandbox.Command{Argv: []string{"cat", "/root/notes"}, Stdout: os.Stdout})
	check(err)
	// Output:
	// common,way 1
	// common,way 2
	// common
}
