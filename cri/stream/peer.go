package stream

import (
	"errors"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// peerClosed tells whether the other end of a loopback connection has been
// closed. While more is on the way than we read, its end does not reach us, for
// minutes: the kernel, which has both ends, is asked. false if it does not say.
func peerClosed(c net.Conn) bool {
	ours, ok := c.LocalAddr().(*net.TCPAddr)
	if !ok || !ours.IP.IsLoopback() {
		return false
	}
	s, err := netlink.SocketGet(c.RemoteAddr(), ours)
	if err != nil {
		return errors.Is(err, unix.ENOENT)
	}
	return s.State != netlink.TCP_ESTABLISHED
}
