//go:build !linux

package sandbox

import "os"

// unnamedFile makes a file in dir and takes its name away.
func unnamedFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "scratch-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
