package container

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Real-time signals as programs see them: the C library keeps the first two.
const (
	sigrtmin = 34
	sigrtmax = 64
)

// signalNumber turns CRI's name of a signal into the kernel's number: "SIGTERM",
// "SIGRTMINPLUS3".
func signalNumber(name string) (unix.Signal, bool) {
	switch {
	case name == "SIGRTMIN":
		return sigrtmin, true
	case name == "SIGRTMAX":
		return sigrtmax, true
	case strings.HasPrefix(name, "SIGRTMINPLUS"):
		n, err := strconv.Atoi(name[len("SIGRTMINPLUS"):])
		return unix.Signal(sigrtmin + n), err == nil
	case strings.HasPrefix(name, "SIGRTMAXMINUS"):
		n, err := strconv.Atoi(name[len("SIGRTMAXMINUS"):])
		return unix.Signal(sigrtmax - n), err == nil
	case name == "SIGCLD":
		name = "SIGCHLD"
	case name == "SIGPOLL":
		name = "SIGIO"
	case name == "SIGIOT":
		name = "SIGABRT"
	}
	n := unix.SignalNum(name)
	return n, n != 0
}

// ParseSignal reads an image's STOPSIGNAL ("SIGQUIT", "QUIT", "3", "SIGRTMIN+3")
// as CRI names it; RUNTIME_DEFAULT if it cannot be.
func ParseSignal(s string) runtimeapi.Signal {
	name := strings.ToUpper(strings.TrimSpace(s))
	if n, err := strconv.Atoi(name); err == nil {
		name = unix.SignalName(unix.Signal(n))
		switch {
		case n > sigrtmin && n <= sigrtmin+15:
			name = "SIGRTMIN+" + strconv.Itoa(n-sigrtmin)
		case n > sigrtmin+15 && n < sigrtmax:
			name = "SIGRTMAX-" + strconv.Itoa(sigrtmax-n)
		case n == sigrtmin:
			name = "SIGRTMIN"
		case n == sigrtmax:
			name = "SIGRTMAX"
		}
	}
	if name != "" && !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	name = strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(name)
	return runtimeapi.Signal(runtimeapi.Signal_value[name])
}
