package wire

import (
	"context"
	"path/filepath"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/agent/runtime"
	"github.com/berthd/berth/agent/userns"
)

// Where log shippers look for links, and the logs that these lead to.
const (
	podLogs  = "/var/log/pods"
	logLinks = "/var/log/containers"
)

// logLinksDir is where links to containers' logs lie: where everybody looks for
// them, or beside a log directory of the user's own choice.
func (o Options) logLinksDir() string {
	switch {
	case o.LogLinksDir != "":
		return o.LogLinksDir
	case filepath.Clean(o.LogDir) == podLogs:
		return logLinks
	}
	return filepath.Join(filepath.Dir(filepath.Clean(o.LogDir)), "containers")
}

// openPodRuntime makes the part that does what is planned for pods.
func (n *node) openPodRuntime(ctx context.Context, objs runtime.Objects, sink Sink) (err error) {
	o := n.o
	n.users, err = userns.Open(ctx, userns.Config{Dir: filepath.Join(o.RootDir, "pods"), IDsPerPod: o.IDsPerPod, MaxPods: o.MaxPods, Log: o.Log})
	if err != nil {
		return err
	}
	n.runtime = runtime.New(n.runtimeConfig(), runtime.Deps{
		CRI: n.cri, Volumes: podVolumes{n.volumes}, Cgroup: n.cgroups, Objects: objs, Userns: n.users, Events: sink.Event, Log: o.Log,
	})
	if err := n.runtime.SweepLogLinks(); err != nil {
		o.Log.Warn("links to logs that are gone could not all be removed; the next start tries again", "error", err)
	}
	for _, why := range n.runtime.CheckResolvConf() {
		o.Log.Warn("pods will not get all of the node's resolver configuration", "why", why)
	}
	return nil
}

func (n *node) runtimeConfig() runtime.Config {
	o := n.o
	return runtime.Config{
		RootDir: o.RootDir, LogDir: o.LogDir, LogLinksDir: o.logLinksDir(), SeccompDefault: o.SeccompDefault, Pulls: o.ParallelPulls,
		DockerConfigs: []string{filepath.Join(o.RootDir, "config.json"), "/root/.docker/config.json"},
		NoCPUQuota:    o.NoCPUQuota, CPUPeriod: o.CPUPeriod, SingleProcessOOMKill: o.SingleProcessOOMKill, LimitedSwap: o.LimitedSwap,
		ClusterDNS: o.ClusterDNS, ClusterDomain: o.ClusterDomain, NoHostDNS: o.ResolvConf == "",
		Node: runtime.Node{
			Name: o.NodeName, IPs: n.ips, Allocatable: n.allocatable, Memory: n.memory, Swap: n.swap, ResolvConf: o.ResolvConf,
			CgroupV2: n.cgroups.V2(), SwapAccounting: n.cgroups.SwapAccounting(), AppArmor: n.appArmor(),
		},
	}
}

// retainUsers takes back the ranges of IDs of pods that are gone altogether.
func (n *node) retainUsers(records map[pod.UID]pod.Record, known map[pod.UID]runtime.Known) {
	err := n.users.Retain(func(uid pod.UID) bool {
		_, recorded := records[uid]
		_, there := known[uid]
		return recorded || there
	})
	if err != nil {
		n.o.Log.Warn("ranges of IDs of pods that are gone could not all be taken back; the next start tries again", "error", err)
	}
}
