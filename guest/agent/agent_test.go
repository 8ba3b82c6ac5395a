package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDigestIsThatOfTheBinary(t *testing.T) {
	binary, err := Open()
	require.NoError(t, err, "build it with `make guest`")
	sum := sha256.New()
	_, err = io.Copy(sum, binary)
	require.NoError(t, err)
	digest, err := Digest()
	require.NoError(t, err)
	require.Equal(t, hex.EncodeToString(sum.Sum(nil)), digest)
}
