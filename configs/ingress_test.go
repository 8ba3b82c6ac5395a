package configs

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestListenTakesAPortAnAddressAndWhereItLeads(t *testing.T) {
	c, err := load(t, "version: 1\n", []string{"HOME=/h"}, "--listen", "8080", "--listen=9000=3000", "--listen", "[::1]:80=81", "--listen", "0.0.0.0:8081")
	require.NoError(t, err)
	assert.Equal(t, []Listen{{At: "127.0.0.1:8080"}, {At: "127.0.0.1:9000", Port: 3000}, {At: "[::1]:80", Port: 81}, {At: "0.0.0.0:8081"}}, c.Ingress.Listen)
	assert.True(t, c.Ingress.Expose)
	assert.False(t, c.SSH.Enabled)

	for arg, want := range map[string]string{
		"--listen=x":            "no address with a port",
		"--listen=localhost:80": "no address with a port",
		"--listen=0":            "no address with a port",
		"--listen=80=":          "names no port of the machine",
		"--listen=80=70000":     "out of range",
		"--listen=80=web":       "whole number",
	} {
		_, err := load(t, "version: 1\n", []string{"HOME=/h"}, arg)
		require.ErrorContains(t, err, want, arg)
	}
	_, err = load(t, "version: 1\n", []string{"HOME=/h"}, "--listen=80", "--listen=127.0.0.1:80=3")
	require.ErrorContains(t, err, "taken already")
	_, err = load(t, "version: 1\ningress:\n  hosts: [\"http://x\"]\n", []string{"HOME=/h"})
	require.ErrorContains(t, err, "no host name")
}
