// Package inguest holds tests that run inside a guest: package e2e compiles them
// into one static program, puts it into a machine and runs it there, in the directory that
// GONDOLIN_DIR names. On a host they are skipped.
package inguest
