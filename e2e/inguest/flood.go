package inguest

import _ "embed" // of the script

// Flood is a program in Python for a guest that means harm: its arguments are a host, a
// port and for how many seconds. It may look up names below flood.example.
//
//go:embed flood.py
var Flood string
