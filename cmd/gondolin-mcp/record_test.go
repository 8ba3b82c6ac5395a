package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gondolin-go/gondolin/configs"
)

func TestTheRecordTellsWhatASessionGoesOnFromAndWhatWasCopiedOfIt(t *testing.T) {
	dir := t.TempDir()
	r := &record{audit: configs.Audit{Enabled: true, Dir: dir, FileSize: 1, Files: 2}, origin: "from snapshot deps"}
	require.NoError(t, r.open("vm-1"))
	r.copied("kept", "as snapshot later")
	require.NoError(t, r.close("it was closed"))
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	text, err := os.ReadFile(files[0])
	require.NoError(t, err)
	assert.Contains(t, string(text), `"reason":"from snapshot deps"`)
	assert.Contains(t, string(text), `"reason":"as snapshot later"`)
}
