package main

import (
	"io"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAWaitingReadOfTheInputEndsWithClose(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	defer w.Close()
	in, err := wakeable(r)
	require.NoError(t, err)
	_, err = w.WriteString("hello")
	require.NoError(t, err)
	b := make([]byte, 10)
	n, err := in.Read(b)
	require.NoError(t, err)
	assert.Equal(t, "hello", string(b[:n]))

	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := in.Read(make([]byte, 10))
		assert.ErrorIs(t, err, os.ErrClosed)
	})
	require.NoError(t, in.(io.Closer).Close())
	require.NoError(t, in.(io.Closer).Close())
	wg.Wait()
	_, err = in.Read(b)
	assert.ErrorIs(t, err, os.ErrClosed)
}

func TestTheInputEndsWhereItsFileDoes(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	in, err := wakeable(r)
	require.NoError(t, err)
	_, err = w.WriteString("all")
	require.NoError(t, err)
	require.NoError(t, w.Close())
	got, err := io.ReadAll(in)
	require.NoError(t, err)
	assert.Equal(t, "all", string(got))

	plain := strings.NewReader("x")
	same, err := wakeable(plain)
	require.NoError(t, err)
	assert.Same(t, plain, same)
}
