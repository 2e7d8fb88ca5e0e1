package stream

import (
	"fmt"
	"io"

	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// The channels of remotecommand over WebSocket: a message's first byte.
const (
	stdinChannel = iota
	stdoutChannel
	stderrChannel
	errorChannel
	resizeChannel
	channelCount
)

// structuredProtocols tell statuses in JSON. v5 is v4 and a signal by which a
// client closes one channel: the end of its standard input.
var structuredProtocols = map[string]bool{"v5.channel.k8s.io": true, "v4.channel.k8s.io": true, "v4.base64.channel.k8s.io": true}

// openWebSocket upgrades l; its channels exist at once.
func (s *Server) openWebSocket(l *line, q wanted) (*session, error) {
	channels := make([]wsstream.ChannelType, channelCount)
	for i, ch := range []struct {
		asked bool
		kind  wsstream.ChannelType
	}{{q.GetStdin(), wsstream.ReadChannel}, {q.GetStdout(), wsstream.WriteChannel}, {q.GetStderr(), wsstream.WriteChannel},
		{true, wsstream.WriteChannel}, {true, wsstream.ReadChannel}} {
		if ch.asked {
			channels[i] = ch.kind
		} else {
			channels[i] = wsstream.IgnoreChannel
		}
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		"":                         {Binary: true, Channels: channels},
		"channel.k8s.io":           {Binary: true, Channels: channels},
		"base64.channel.k8s.io":    {Channels: channels},
		"v4.channel.k8s.io":        {Binary: true, Channels: channels},
		"v4.base64.channel.k8s.io": {Channels: channels},
		"v5.channel.k8s.io":        {Binary: true, Channels: channels},
	})
	conn.SetIdleTimeout(s.cfg.IdleTimeout)
	protocol, streams, err := conn.Open(l, l.r)
	if err != nil {
		return nil, fmt.Errorf("upgrading to WebSocket: %w", err)
	}
	c := &session{line: l, tty: q.GetTty(), structured: structuredProtocols[protocol], status: streams[errorChannel], closeConnection: func() { conn.Close() }}
	first := streams[errorChannel]
	if q.GetStderr() {
		c.errOut, first = streams[stderrChannel], streams[stderrChannel]
	}
	if q.GetStdout() {
		c.out, first = streams[stdoutChannel], streams[stdoutChannel]
	}
	if q.GetStdin() {
		c.in = streams[stdinChannel]
	}
	if q.GetTty() {
		c.sizes = streams[resizeChannel]
	} else {
		// Nobody else empties it, and a message there would hold up all others.
		l.work.Go(func() { io.Copy(io.Discard, streams[resizeChannel]) })
	}
	first.Write(nil) // an empty message tells the client that it is connected
	return c, nil
}
