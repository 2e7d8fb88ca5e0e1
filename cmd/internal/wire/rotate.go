package wire

import (
	"context"
	"math/rand/v2"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/cri/logfile"
)

// rotatePeriod is how often the sizes of logs are looked at, as the kubelet does.
const rotatePeriod = 10 * time.Second

// rotateLogs keeps the logs of running containers within their size, until ctx ends.
func (n *node) rotateLogs(ctx context.Context) error {
	rotation := logfile.Rotation{MaxSize: n.o.LogMaxSize, MaxFiles: n.o.LogMaxFiles}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(rotatePeriod + rand.N(rotatePeriod/10)):
		}
		for _, s := range n.dispatcher.Snapshots() {
			for _, c := range s.Observed.Containers {
				if c.State != pod.Running || c.LogPath == "" {
					continue
				}
				_, err := rotation.Rotate(c.LogPath, time.Now(), func() error {
					_, err := n.cri.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: string(c.ID)})
					return err
				})
				if err != nil {
					n.o.Log.Warn("a log could not be rotated", "pod", s.Desired.Pod.Namespace+"/"+s.Desired.Pod.Name, "container", c.Name, "log", c.LogPath, "error", err)
				}
			}
		}
	}
}
