package secret

import (
	"errors"
	"fmt"
	"log/slog"
)

// Value is a secret's value. However it is printed, logged or marshalled, what
// comes out is "[secret NAME]"; it has no form that can be read back. The zero
// Value is empty.
type Value struct {
	name string
	// A function, because printers that walk structures by reflection, down to
	// unexported fields, stop at one.
	reveal func() string
}

// NewValue makes a Value. Only its name is ever shown.
func NewValue(name, value string) Value {
	return Value{name: name, reveal: func() string { return value }}
}

// Reveal is the value itself, for the one place where it is put into a request.
func (v Value) Reveal() string {
	if v.reveal == nil {
		return ""
	}
	return v.reveal()
}

// Name is the secret's name.
func (v Value) Name() string { return v.name }

// String is "[secret NAME]".
func (v Value) String() string { return "[secret " + v.name + "]" }

// Format implements fmt.Formatter: the same for every verb and flag.
func (v Value) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(v.String())) }

// GoString implements fmt.GoStringer, for those who call it themselves.
func (v Value) GoString() string { return v.String() }

// LogValue implements slog.LogValuer.
func (v Value) LogValue() slog.Value { return slog.StringValue(v.String()) }

// MarshalText implements encoding.TextMarshaler, for JSON, YAML and XML.
func (v Value) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// MarshalBinary refuses: a binary form is for reading back, and there is none.
func (v Value) MarshalBinary() ([]byte, error) {
	return nil, errors.New(v.String() + " cannot be marshalled")
}

// GobEncode refuses, like MarshalBinary.
func (v Value) GobEncode() ([]byte, error) { return v.MarshalBinary() }
