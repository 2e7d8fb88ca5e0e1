package probes

import (
	"reflect"
	"time"

	"github.com/berthd/berth/probes/result"
	v1 "k8s.io/api/core/v1"
)

// Kind and Verdict are result's; Startup, Liveness and Readiness are the kinds.
type (
	Kind    = result.Kind
	Verdict = result.Verdict
)

// The kinds and verdicts.
const (
	Startup   = result.Startup
	Liveness  = result.Liveness
	Readiness = result.Readiness

	None    = result.None
	Success = result.Success
	Failed  = result.Failed
)

// Target is one probe of one container instance. It is a value; what its
// pointers lead to must not change.
type Target struct {
	// ContainerID is the instance: a restarted container is another target.
	ContainerID string
	Kind        Kind
	// Probe says how and how often. Its exec command is run as it is: variables
	// in it are expanded already.
	Probe *v1.Probe
	// PodIP is where HTTP, TCP and gRPC probes without a host go.
	PodIP string
	// Ports are the container's, for probes that name one.
	Ports []v1.ContainerPort
	// StartedAt is when the container started; the initial delay counts from it.
	StartedAt time.Time
	// Initial is the verdict this instance is known to have, from before a
	// restart of the agent. It counts only when the target is new.
	Initial Verdict
	// Pod and Container are names for the log.
	Pod, Container string
}

type key struct {
	container string
	kind      Kind
}

func (t *Target) key() key { return key{t.ContainerID, t.Kind} }

// same says whether a and b ask for the same probing.
func (t *Target) same(b *Target) bool {
	return t.PodIP == b.PodIP &&
		(t.Probe == b.Probe || reflect.DeepEqual(t.Probe, b.Probe)) &&
		(len(t.Ports) == 0 && len(b.Ports) == 0 || reflect.DeepEqual(t.Ports, b.Ports))
}

func (t *Target) thresholds() result.Thresholds {
	th := result.Thresholds{Success: t.Probe.SuccessThreshold, Failure: t.Probe.FailureThreshold}
	if th.Failure == 0 {
		th.Failure = 3
	}
	return th
}

// period and timeout apply the API's defaults to a probe that never met them.
func (t *Target) period() time.Duration { return seconds(t.Probe.PeriodSeconds, 10) }

func (t *Target) timeout() time.Duration { return seconds(t.Probe.TimeoutSeconds, 1) }

func seconds(n, fallback int32) time.Duration {
	if n <= 0 {
		n = fallback
	}
	return time.Duration(n) * time.Second
}

// delay is how much of the initial delay is left at now. A start that lies in
// the future, because the clock was set back, counts as now: it must not put
// probing off for longer than the delay itself.
func (t *Target) delay(now time.Time) time.Duration {
	whole := time.Duration(t.Probe.InitialDelaySeconds) * time.Second
	since := max(now.Round(0).Sub(t.StartedAt.Round(0)), 0)
	return max(whole-since, 0)
}
