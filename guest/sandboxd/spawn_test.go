//go:build linux

package sandboxd

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// An image may lack /etc/passwd and /etc/group altogether.
func TestAccountsAreFoundWithAndWithoutTheFilesThatNameThem(t *testing.T) {
	accounts.known, accounts.stamp = nil, [2]fileStamp{stampOf("/etc/passwd"), stampOf("/etc/group")}
	for range 2 { // looked up, then remembered
		acc, err := accountOf("root")
		require.NoError(t, err)
		require.Zero(t, acc.uid)
		acc, err = accountOf("12345:54321")
		require.NoError(t, err)
		require.Equal(t, uint32(12345), acc.uid)
		require.Equal(t, uint32(54321), acc.gid)
	}
	_, err := accountOf("no-such-user")
	require.ErrorContains(t, err, "no-such-user")
}

func TestLaterVariablesWin(t *testing.T) {
	env := environment(&account{name: "u", home: "/h", shell: "/bin/sh"}, []string{"HOME=/other", "A=1", "A=2"}, false)
	require.Equal(t, "/other", getenv(env, "HOME"))
	require.Equal(t, "2", getenv(env, "A"))
	require.Equal(t, defaultPath, getenv(env, "PATH"))
}
