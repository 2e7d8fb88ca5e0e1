package image

import (
	"context"
	"io"
	"log/slog"
	"sync"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// silence stops containerd's libraries from writing to standard error.
var silence = sync.OnceFunc(func() { log.L.Logger.SetOutput(io.Discard) })

// quiet makes what containerd's libraries log through ctx go to l.
func quiet(ctx context.Context, l *slog.Logger) context.Context {
	silence()
	lr := logrus.New()
	lr.SetOutput(io.Discard)
	lr.SetLevel(logrus.WarnLevel)
	lr.AddHook(forward{l})
	return log.WithLogger(ctx, logrus.NewEntry(lr))
}

// forward hands log entries of containerd's libraries to a slog logger.
type forward struct{ to *slog.Logger }

// Levels are those worth keeping.
func (f forward) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel, logrus.WarnLevel}
}

// Fire writes one entry. They are of steps whose failure is also returned.
func (f forward) Fire(e *logrus.Entry) error {
	attrs := make([]any, 0, 2*len(e.Data))
	for k, v := range e.Data {
		attrs = append(attrs, k, v)
	}
	f.to.Debug("containerd: "+e.Message, attrs...)
	return nil
}
