// Package e2e holds the tests that need a real machine: one promise a file, on
// QEMU and a Linux guest, most of them through the real server and a real
// client. They share the default image, which `make image` builds.
package e2e
