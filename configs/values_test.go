package configs

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestARelativeRuntimeDirectoryOfTheDesktopIsIgnored(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "run")
	c, err := Load(Sources{})
	require.NoError(t, err)
	assert.True(t, filepath.IsAbs(c.Paths.Runtime), c.Paths.Runtime)
}

func TestUsersAreNamesOrNumbersWithOrWithoutAGroup(t *testing.T) {
	for _, user := range []string{"root", "www-data", "1000", "1000:1000", "node:staff", "_apt", "svc$"} {
		c, err := load(t, "", nil, "--user", user)
		require.NoError(t, err, user)
		assert.Equal(t, user, c.Session.User)
	}
}
