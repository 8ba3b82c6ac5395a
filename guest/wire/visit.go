package wire

// Visit is the answer of a program of the host to the Announce of a session that it
// attaches to; see the package documentation.
type Visit struct {
	Version int `cbor:"1,keyasint"`
}

// Watched answers OpWatch when the session ends.
type Watched struct {
	Reason string `cbor:"1,keyasint"`
}

// EndSession asks for the end of the session; OpEnd.
type EndSession struct {
	Reason string `cbor:"1,keyasint"`
}

// Describe asks for what is known of the session; OpDescribe.
type Describe struct {
	Console int  `cbor:"1,keyasint,omitempty"` // lines of the end of the console
	Denials bool `cbor:"2,keyasint,omitempty"` // what the host refused the guest
}

// TakeSnapshot asks for a snapshot of the session; OpSnapshot.
type TakeSnapshot struct {
	Name string `cbor:"1,keyasint"`
	Disk bool   `cbor:"2,keyasint,omitempty"` // the disk alone
}

// OpenSSH asks for an SSH server for the session; OpSSH.
type OpenSSH struct {
	Forward bool `cbor:"1,keyasint,omitempty"`
}

// SSHServer is the answer: where it listens on the host's loopback, and a configuration for OpenSSH's programs.
type SSHServer struct {
	Addr       string `cbor:"1,keyasint"`
	ConfigFile string `cbor:"2,keyasint"`
}
