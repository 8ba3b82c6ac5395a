//go:build !linux

package template

import "os"

const supported = false

func Anonymous(string, int64) (*os.File, error) { return nil, ErrUnsupported }

func seal(*os.File) error { return ErrUnsupported }

func extent(*os.File, int64, int64) (data, hole int64, err error) { return 0, 0, ErrUnsupported }

func DiskUsage(string) int64 { return 0 }
