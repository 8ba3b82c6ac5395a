//go:build !linux

package sandbox

import "os"

func unnamedFile(dir string) (*os.File, error) { return unlinkedFile(dir) }
