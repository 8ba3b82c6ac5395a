package sandbox

import "net"

// peerUID is the user whose process connected.
func peerUID(conn *net.UnixConn) (uid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	if cerr := raw.Control(func(fd uintptr) { uid, err = socketUID(int(fd)) }); cerr != nil {
		return 0, cerr
	}
	return uid, err
}
