package e2e

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/gondolin-go/gondolin/"

// mayImport is the house's plan: imports point strictly downward. A pattern
// ending in /... covers a whole branch. What is not listed may import nothing
// of this module.
var mayImport = map[string][]string{
	"cmd/gondolin-mcp":     {"docs", "configs", "tools", "sandbox", "sandbox/qemu", "sandbox/audit", "images", "vfs", "netguard", "netguard/policy", "netguard/secret"},
	"tools":                {"sandbox"},
	"configs":              {"sandbox", "images", "vfs", "netguard/policy", "netguard/secret"},
	"sandbox":              {"sandbox/qemu", "sandbox/template", "sandbox/ingress", "sandbox/sshd", "netguard", "netguard/ca", "netguard/policy", "netguard/secret", "vfs", "guest/wire", "guest/agent"},
	"sandbox/qemu":         {"guest/wire"},
	"vfs":                  {"guest/fsport"},
	"guest":                {"guest/near", "guest/pid1", "guest/sandboxd", "guest/sandboxfs", "guest/sandboxingress", "guest/sandboxssh"},
	"guest/near":           {"guest/wire"},
	"guest/pid1":           {"guest/near"},
	"guest/sandboxd":       {"guest/wire", "guest/near", "guest/pid1", "guest/port", "guest/sandboxfs"},
	"guest/sandboxfs":      {"guest/wire", "guest/fsport", "guest/near", "guest/port"},
	"guest/sandboxingress": {"guest/wire", "guest/port"},
	"guest/port":           {"guest/wire"},
	"netguard":             {"netguard/policy", "netguard/secret", "netguard/ca"},
	"e2e/bench":            {"sandbox", "images", "vfs", "netguard", "netguard/policy", "e2e/inguest"},
	"e2e/demo":             {"docs"},
	"e2e":                  {"guest/wire", "sandbox", "images", "vfs", "netguard", "netguard/policy", "netguard/secret", "e2e/inguest"},
}

type listedPackage struct {
	ImportPath string
	Dir        string
	Doc        string
	GoFiles    []string
	Imports    []string
}

func packages(t *testing.T) []listedPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	require.NoError(t, err)
	var all []listedPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p listedPackage
		require.NoError(t, dec.Decode(&p))
		all = append(all, p)
	}
	require.NotEmpty(t, all)
	return all
}

func TestStructureImportsPointDownward(t *testing.T) {
	for _, p := range packages(t) {
		own := strings.TrimPrefix(p.ImportPath, module)
		for _, imp := range p.Imports {
			if dep, ours := strings.CutPrefix(imp, module); ours {
				require.Contains(t, mayImport[own], dep, "%s must not import %s", own, dep)
			}
		}
	}
}

func TestStructureEveryPackageHasADoc(t *testing.T) {
	for _, p := range packages(t) {
		require.NotEmpty(t, p.Doc, "%s has no package comment", p.ImportPath)
	}
}

// Standard output belongs to MCP.
func TestStructureNothingBelowCmdPrintsToStdout(t *testing.T) {
	eachFile(t, func(t *testing.T, file string, f *ast.File) {
		ast.Inspect(f, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if pkg, ok := sel.X.(*ast.Ident); ok && (pkg.Name == "fmt" && strings.HasPrefix(sel.Sel.Name, "Print") || pkg.Name == "os" && sel.Sel.Name == "Stdout") {
				t.Errorf("%s uses %s.%s", file, pkg.Name, sel.Sel.Name)
			}
			return true
		})
	})
}

func TestStructureContextsComeFromAbove(t *testing.T) {
	eachFile(t, func(t *testing.T, file string, f *ast.File) {
		ast.Inspect(f, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "context" && (sel.Sel.Name == "Background" || sel.Sel.Name == "TODO") {
					t.Errorf("%s uses context.%s", file, sel.Sel.Name)
				}
			}
			return true
		})
	})
}

func TestStructureFilesStayReadable(t *testing.T) {
	require.NoError(t, filepath.WalkDir("..", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && strings.HasPrefix(d.Name(), ".") && p != ".." {
			return fs.SkipDir
		}
		if strings.HasSuffix(p, ".go") {
			b, err := os.ReadFile(p)
			require.NoError(t, err)
			require.LessOrEqual(t, strings.Count(string(b), "\n"), 450, p)
		}
		return nil
	}))
}

// eachFile visits the library's files: everything but commands and tests.
func eachFile(t *testing.T, visit func(*testing.T, string, *ast.File)) {
	t.Helper()
	for _, p := range packages(t) {
		own := strings.TrimPrefix(p.ImportPath, module)
		if strings.HasPrefix(own, "cmd/") || strings.HasPrefix(own, "e2e") || own == "guest" {
			continue
		}
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, 0)
			require.NoError(t, err)
			visit(t, path.Join(own, name), f)
		}
	}
}

// What docs/security.md says is tested is a test.
func TestSecurityPageNamesRealTests(t *testing.T) {
	page, err := os.ReadFile("../docs/security.md")
	require.NoError(t, err)
	tests := map[string]bool{}
	require.NoError(t, filepath.WalkDir("..", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && strings.HasPrefix(d.Name(), ".") && p != ".." {
			return fs.SkipDir
		}
		if !strings.HasSuffix(p, "_test.go") {
			return nil
		}
		b, err := os.ReadFile(p)
		require.NoError(t, err)
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(b), -1) {
			tests[m[1]] = true
		}
		return nil
	}))
	named := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(string(page), -1)
	require.Greater(t, len(named), 40)
	for _, m := range named {
		require.True(t, tests[m[1]], "there is no %s", m[1])
	}
}
