package differential

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/berthd/berth/agent/podspec"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	podutil "k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/validation"
)

// running makes pods that run from those of testdata/rich, and from changed
// ones that are still valid: with a status that tells of the containers'
// resources, or in a few cases not.
func running(t *testing.T) []*v1.Pod {
	t.Helper()
	var all []*v1.Pod
	rng := rand.New(rand.NewPCG(2, uint64(setting(t, "BERTH_DIFF_SEED", 1))))
	add := func(p *v1.Pod) {
		p.ResourceVersion = "1"
		podspec.Default(p)
		if rng.IntN(8) > 0 {
			for _, c := range p.Spec.Containers {
				p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, v1.ContainerStatus{Name: c.Name, Resources: c.Resources.DeepCopy(),
					State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}})
			}
		}
		all = append(all, p)
	}
	valid := seeds(t)
	valid = slices.DeleteFunc(valid, func(p *v1.Pod) bool { return p.Name != "debug" && slices.Contains(invalidSeeds, p.Name) })
	for _, p := range valid {
		add(p.DeepCopy())
	}
	for n := 0; n < 300; n++ {
		p := valid[rng.IntN(len(valid))].DeepCopy()
		late := p.Spec.EphemeralContainers
		p.Spec.EphemeralContainers = nil
		for range 1 + rng.IntN(3) {
			change(rng, p, resourcesOnly)
		}
		if len(upstreamCreate(p)) == 0 {
			p.Spec.EphemeralContainers = late
			add(p)
		}
	}
	return all
}

var resourcesOnly = matching(`\.resources\b|\.resizePolicy|\.resizePolicy|spec\.os|annotations`)

// compareUpdate holds one kind of update against upstream's.
func compareUpdate(old, p *v1.Pod, theirs func(new, old *core.Pod, o validation.PodValidationOptions) field.ErrorList, ours func(new, old *v1.Pod) field.ErrorList) []difference {
	before, err := internal(old)
	if err != nil {
		return []difference{{"upstream", "conversion", "", err.Error()}}
	}
	after, err := internal(p)
	if err != nil {
		return []difference{{"upstream", "conversion", "", err.Error()}}
	}
	options := podutil.GetValidationOptionsFromPodSpecAndMeta(&after.Spec, &before.Spec, &after.ObjectMeta, &before.ObjectMeta)
	options.ResourceIsPod = true
	p = p.DeepCopy()
	podspec.Default(p)
	return diffErrors(theirs(after, before, options), ours(p, old))
}

func TestEphemeralContainersUpdate(t *testing.T) {
	may := matching(`^spec\.ephemeralContainers|^metadata\.(annotations|labels|name$|uid)`)
	hunt(t, comparison{"ephemeral", running(t), may, func(old, p *v1.Pod) []difference {
		return compareUpdate(old, p, validation.ValidatePodEphemeralContainersUpdate, podspec.ValidateEphemeralContainersUpdate)
	}})
}

func TestResize(t *testing.T) {
	may := matching(`^spec\.(resources|containers\[\]\.(resources|resizePolicy)|initContainers\[\]\.(resources|resizePolicy)|containers$|initContainers$)|^metadata\.(labels|annotations)`)
	hunt(t, comparison{"resize", running(t), may, func(old, p *v1.Pod) []difference {
		return compareUpdate(old, p, validation.ValidatePodResize, podspec.ValidateResize)
	}})
}
