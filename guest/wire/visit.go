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
