package netguard

import "time"

// The defaults of Limits, and bounds that nobody has to tune.
const (
	defaultFlows       = 512
	defaultHalfOpen    = 128
	defaultNames       = 4096
	defaultHeaderBytes = 64 << 10
	defaultSniff       = 15 * time.Second // an emulated guest on a busy host reads its certificates meanwhile
	defaultIdle        = 5 * time.Minute

	handshakeTimeout = 5 * time.Second // for the guest's third packet of a TCP handshake
	finTimeout       = 5 * time.Second // for the guest's FIN after ours has arrived
	timeWait         = 500 * time.Millisecond

	keepaliveIdle     = 60 * time.Second
	keepaliveInterval = 30 * time.Second
	keepaliveCount    = 5
)

func (l Limits) withDefaults() Limits {
	orDefault(&l.Flows, defaultFlows)
	orDefault(&l.HalfOpen, defaultHalfOpen)
	orDefault(&l.Names, defaultNames)
	orDefault(&l.HeaderBytes, defaultHeaderBytes)
	orDefault(&l.Sniff, defaultSniff)
	orDefault(&l.Idle, defaultIdle)
	l.Names = min(l.Names, maxPoolNames/2) // the rest of the pool is in quarantine
	return l
}

func orDefault[T int | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// buffers are the sizes of a flow's TCP buffers, in bytes. All flows together must not
// hold more than the host can bear, and a guest that has few wants them fast: so the more
// are open, the smaller the next one's are. At 512 flows that is 50 MiB towards the
// guest, if it reads from none of them, and 78 MiB from it, if no server does.
func buffers(open int) (send, receive int) {
	switch {
	case open <= 8:
		return maxBuffer, maxBuffer
	case open <= 64:
		return 256 << 10, 256 << 10
	}
	return 64 << 10, 128 << 10 // a window is half a buffer, and a packet 64 KiB
}

const maxBuffer = 1 << 20

// copyBuffer is the size of a mapped flow's buffer in each direction, in bytes: a
// packet of the guest's, or less when many are open (8 MiB for 512 flows).
func copyBuffer(open int) int {
	if open <= 64 {
		return 64 << 10
	}
	return 8 << 10
}
