package main

import (
	"bytes"
	"crypto/x509"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/configs"
)

// parsed are flags of the configuration as a command line gives them.
func parsed(t *testing.T, args ...string) *pflag.FlagSet {
	t.Helper()
	flags := configs.Flags()
	require.NoError(t, flags.Parse(args))
	return flags
}

// runCommand runs a command with an empty environment.
func runCommand(t *testing.T, args ...string) (out, errOut string, err error) {
	t.Helper()
	root, _ := newRoot(nil)
	var o, e bytes.Buffer
	root.SetArgs(args)
	root.SetOut(&o)
	root.SetErr(&e)
	err = root.ExecuteContext(t.Context())
	return o.String(), e.String(), err
}

func verifyWith(roots *x509.CertPool) x509.VerifyOptions {
	return x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
}

// Names of files and labels may be a guest's.
func TestNeitherErrorsNorJSONSteerTheTerminal(t *testing.T) {
	var b bytes.Buffer
	require.Equal(t, exitUsage, run(t.Context(), []string{"config", "show", "--config", "/no/\x1b]0;x\x07\u009bm"}, &b))
	require.NotContains(t, b.String(), "\x1b")
	require.NotContains(t, b.String(), "\u009b")
	b.Reset()
	require.NoError(t, printJSON(&b, map[string]string{"a": "\x1b\u009b\x7fé"}))
	require.Equal(t, "{\n  \"a\": \"\\u001b\\u009b\\u007fé\"\n}\n", b.String())
}
