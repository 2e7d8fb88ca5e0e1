package runtime

import (
	"cmp"
	"context"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/berthd/berth/agent/pod"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Known is a pod of which the runtime still has something.
type Known struct {
	// Pod is rebuilt from labels and annotations: who it is, its containers'
	// names, images, ports and preStop hooks, its grace. It is for pods of which
	// nothing better is known, and good for ending them.
	Pod *v1.Pod
	// Source is where the pod came from, "" if nobody wrote it down.
	Source   pod.Source
	Observed pod.Observed
}

// IsPod says that a sandbox has the labels that a node agent gives to those of
// pods: others are somebody else's, crictl's for example.
func IsPod(s *cri.PodSandbox) bool {
	uid := s.GetMetadata().GetUid()
	return uid != "" && s.Labels[labelPodUID] == uid
}

// list asks for all sandboxes and containers: two calls, whatever their number.
func (r *Runtime) list(ctx context.Context) (map[pod.UID]look, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	at := time.Now()
	sandboxes, err := r.CRI.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return nil, fail(op{"list sandboxes", ""}, err)
	}
	containers, err := r.CRI.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return nil, fail(op{"list containers", ""}, err)
	}
	owner := map[string]pod.UID{}
	all := map[pod.UID]look{}
	for _, s := range sandboxes.Items {
		if !IsPod(s) {
			continue
		}
		uid := pod.UID(s.GetMetadata().GetUid())
		l := all[uid]
		l.at, l.sandboxes = at, append(l.sandboxes, s)
		all[uid], owner[s.Id] = l, uid
	}
	for _, c := range containers.Containers {
		uid, ok := owner[c.PodSandboxId]
		if !ok {
			if uid = pod.UID(c.Labels[labelPodUID]); uid == "" {
				continue
			}
		}
		l := all[uid]
		l.at, l.containers = at, append(l.containers, c)
		all[uid] = l
	}
	return all, nil
}

// Known returns every pod of which the runtime has a sandbox or a container: what
// the agent starts from after a restart. Sandboxes without the labels that pods'
// have are not pods. A pod whose status cannot be told is an error: taking it for
// absent could start it twice.
func (r *Runtime) Known(ctx context.Context) (map[pod.UID]Known, error) {
	listed, err := r.list(ctx)
	if err != nil {
		return nil, err
	}
	known := make(map[pod.UID]Known, len(listed))
	var (
		mu     sync.Mutex
		wg     sync.WaitGroup
		failed error
		slots  = make(semaphore, 8)
	)
	for uid, l := range listed {
		if err := slots.acquire(ctx); err != nil {
			failed = fail(opObserve, err)
			break
		}
		wg.Go(func() {
			defer slots.release()
			k := Known{Pod: rebuild(uid, l)}
			k.Source = pod.Source(k.Pod.Annotations[pod.AnnotationSource])
			one, cancel := context.WithTimeout(ctx, observeTimeout)
			defer cancel()
			var err error
			k.Observed, err = r.inspect(one, uid, l)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = err
			}
			if len(k.Observed.Sandboxes) > 0 && k.Observed.Sandboxes[0].HostNetwork {
				k.Pod.Spec.HostNetwork = true
			}
			known[uid] = k
		})
	}
	wg.Wait()
	if failed != nil {
		return nil, failed
	}
	return known, nil
}

// rebuild makes the minimal pod out of the newest sandbox and containers.
func rebuild(uid pod.UID, l look) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid)}, Spec: v1.PodSpec{RestartPolicy: v1.RestartPolicyNever}}
	var newest *cri.PodSandbox
	for _, s := range l.sandboxes {
		if newest == nil || s.GetMetadata().GetAttempt() > newest.GetMetadata().GetAttempt() {
			newest = s
		}
	}
	if newest != nil {
		p.Name, p.Namespace = newest.GetMetadata().GetName(), newest.GetMetadata().GetNamespace()
		p.Labels, p.Annotations = ownLabels(newest.Labels), newest.Annotations
	}
	containers := slices.Clone(l.containers)
	slices.SortStableFunc(containers, func(a, b *cri.Container) int {
		return int(b.GetMetadata().GetAttempt()) - int(a.GetMetadata().GetAttempt())
	})
	seen := map[string]bool{}
	for _, c := range containers {
		name := c.GetMetadata().GetName()
		if seen[name] {
			continue
		}
		seen[name] = true
		image := cmp.Or(c.GetImage().GetUserSpecifiedImage(), c.Annotations[annotationImage], c.GetImage().GetImage())
		p.Spec.Containers = append(p.Spec.Containers, rebuilt(name, image, c.Annotations))
		if p.Name == "" {
			p.Name, p.Namespace = c.Labels[labelPodName], c.Labels[labelPodNamespace]
		}
		if g, err := strconv.ParseInt(c.Annotations[annotationTerminationGrace], 10, 64); err == nil && g >= 0 {
			p.Spec.TerminationGracePeriodSeconds = &g
		}
	}
	slices.SortFunc(p.Spec.Containers, func(a, b v1.Container) int { return strings.Compare(a.Name, b.Name) })
	return p
}
