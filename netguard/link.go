package netguard

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// mtu is what an IP packet on the link may have at most, in bytes. Under
	// emulation a packet costs the same whatever its length, so that a large one is
	// worth most; 65000 leaves room below the 65535 of an IPv4 packet and QEMU's
	// own buffer of 4 KiB + 64 KiB.
	mtu = 65000
	// maxFrame is an Ethernet header and a packet. The guest's virtio-net has no VLAN tags.
	maxFrame = header.EthernetMinimumSize + mtu

	// The queue towards the guest. What does not fit is dropped, as by a network
	// card whose driver does not fetch: TCP sends it again.
	maxQueuePackets = 1024
	maxQueueBytes   = 4 << 20
	// One write to the link takes at most this much from it.
	maxBatchPackets = 64
	maxBatchBytes   = 1 << 20

	linkReadBuffer = 256 << 10
)

// errFrame ends the link: after a length that cannot be, there is no way to find
// where the next frame begins.
var errFrame = errors.New("malformed frame on the guest's link")

// link is a stack's end of an Ethernet cable: frames on a stream, each after its
// length in 4 bytes, big-endian (QEMU's -netdev stream). There is one machine at the
// other end, whose MAC address is fixed. Every frame is sent to it without asking
// who has which address, so that there is no table for the guest to fill.
type link struct {
	conn   net.Conn
	mac    tcpip.LinkAddress
	remote tcpip.LinkAddress
	admit  func(frame []byte) bool // false: drop it

	mu         sync.Mutex
	dispatcher stack.NetworkDispatcher
	queue      []*stack.PacketBuffer
	queued     int // bytes in queue
	closed     bool
	dropped    uint64

	wake chan struct{} // holds a token when there may be something to write
}

var _ stack.LinkEndpoint = (*link)(nil)

func newLink(conn net.Conn, mac, remote tcpip.LinkAddress, admit func([]byte) bool) *link {
	return &link{conn: conn, mac: mac, remote: remote, admit: admit, wake: make(chan struct{}, 1)}
}

// readLoop delivers frames until the stream ends (nil) or fails.
func (l *link) readLoop() (err error) {
	// A packet that makes the stack panic ends this guest's link and nothing else.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the guest's packet broke the network stack: %v", p)
		}
	}()
	r := bufio.NewReaderSize(l.conn, linkReadBuffer)
	var size [4]byte
	for {
		if _, err := io.ReadFull(r, size[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("reading from the guest's link: %w", err)
		}
		n := binary.BigEndian.Uint32(size[:])
		if n < header.EthernetMinimumSize || n > maxFrame {
			return fmt.Errorf("%w: %d bytes, of %d to %d", errFrame, n, header.EthernetMinimumSize, maxFrame)
		}
		view := buffer.NewViewSize(int(n))
		if _, err := io.ReadFull(r, view.AsSlice()); err != nil {
			view.Release()
			return fmt.Errorf("reading from the guest's link: %w", err)
		}
		if !l.admit(view.AsSlice()) {
			view.Release()
			continue
		}
		l.deliver(view)
	}
}

func (l *link) deliver(frame *buffer.View) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(frame)})
	defer pkt.DecRef()
	if !l.ParseHeader(pkt) {
		return
	}
	eth := header.Ethernet(pkt.LinkHeader().Slice())
	pkt.PktType = tcpip.PacketHost
	if header.IsMulticastEthernetAddress(eth.DestinationAddress()) {
		pkt.PktType = tcpip.PacketMulticast
	}
	l.mu.Lock()
	d := l.dispatcher
	l.mu.Unlock()
	if d != nil {
		d.DeliverNetworkPacket(eth.Type(), pkt)
	}
}

// WritePackets implements stack.LinkWriter: it queues and never blocks.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, pkt := range pkts.AsSlice() {
		if l.closed {
			return n, &tcpip.ErrClosedForSend{}
		}
		size := pkt.Size()
		if len(l.queue) >= maxQueuePackets || l.queued+size > maxQueueBytes {
			l.dropped++
			return n, &tcpip.ErrNoBufferSpace{}
		}
		l.queue = append(l.queue, pkt.IncRef())
		l.queued += size
		n++
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return n, nil
}

// writeLoop sends what is queued until the link is closed or a write fails.
func (l *link) writeLoop() error {
	var bufs net.Buffers
	lengths := make([]byte, 0, 4*maxBatchPackets)
	for {
		batch, open := l.take()
		if len(batch) == 0 {
			if !open {
				return nil
			}
			<-l.wake
			continue
		}
		bufs, lengths = bufs[:0], lengths[:0]
		for _, pkt := range batch {
			lengths = binary.BigEndian.AppendUint32(lengths, uint32(pkt.Size()))
			bufs = append(bufs, lengths[len(lengths)-4:])
			bufs = append(bufs, pkt.AsSlices()...)
		}
		w := bufs // WriteTo consumes what it is called on
		_, err := w.WriteTo(l.conn)
		for _, pkt := range batch {
			pkt.DecRef()
		}
		if err != nil {
			return fmt.Errorf("writing to the guest's link: %w", err)
		}
	}
}

// take removes a batch from the head of the queue.
func (l *link) take() (batch []*stack.PacketBuffer, open bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	size := 0
	for _, pkt := range l.queue {
		if len(batch) == maxBatchPackets || size > 0 && size+pkt.Size() > maxBatchBytes {
			break
		}
		batch = append(batch, pkt)
		size += pkt.Size()
	}
	rest := copy(l.queue, l.queue[len(batch):])
	clear(l.queue[rest:])
	l.queue = l.queue[:rest]
	l.queued -= size
	return batch, !l.closed
}

// shut drops what is queued and makes writeLoop return.
func (l *link) shut() {
	l.mu.Lock()
	queue := l.queue
	l.queue, l.queued, l.closed = nil, 0, true
	l.mu.Unlock()
	for _, pkt := range queue {
		pkt.DecRef()
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
	// A write that the other end does not take must not hold anybody.
	_ = l.conn.SetWriteDeadline(time.Now())
}

// MTU implements stack.LinkEndpoint.
func (l *link) MTU() uint32 { return mtu }

// SetMTU implements stack.LinkEndpoint; the MTU is fixed.
func (l *link) SetMTU(uint32) {}

// MaxHeaderLength implements stack.LinkEndpoint.
func (l *link) MaxHeaderLength() uint16 { return header.EthernetMinimumSize }

// LinkAddress implements stack.LinkEndpoint.
func (l *link) LinkAddress() tcpip.LinkAddress { return l.mac }

// SetLinkAddress implements stack.LinkEndpoint; the address is fixed.
func (l *link) SetLinkAddress(tcpip.LinkAddress) {}

// Capabilities implements stack.LinkEndpoint. A Unix socket flips no bits, so
// checksums of what comes in are not computed.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// Attach implements stack.LinkEndpoint.
func (l *link) Attach(d stack.NetworkDispatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dispatcher = d
}

// IsAttached implements stack.LinkEndpoint.
func (l *link) IsAttached() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dispatcher != nil
}

// Wait implements stack.LinkEndpoint; Serve owns the goroutines.
func (l *link) Wait() {}

// ARPHardwareType implements stack.LinkEndpoint.
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// AddHeader implements stack.LinkEndpoint.
func (l *link) AddHeader(pkt *stack.PacketBuffer) {
	header.Ethernet(pkt.LinkHeader().Push(header.EthernetMinimumSize)).Encode(&header.EthernetFields{
		SrcAddr: l.mac, DstAddr: l.remote, Type: pkt.NetworkProtocolNumber,
	})
}

// ParseHeader implements stack.LinkEndpoint.
func (l *link) ParseHeader(pkt *stack.PacketBuffer) bool {
	_, ok := pkt.LinkHeader().Consume(header.EthernetMinimumSize)
	return ok
}

// Close implements stack.LinkEndpoint; Serve closes the connection.
func (l *link) Close() {}

// SetOnCloseAction implements stack.LinkEndpoint.
func (l *link) SetOnCloseAction(func()) {}
