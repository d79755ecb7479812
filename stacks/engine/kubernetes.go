package engine

import (
	"fmt"
	"os"
	"os/exec"
	"slices"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/stacks"
)

// minKubernetesMemory is what a node of Kubernetes takes with nothing on it yet, and a job's share.
const minKubernetesMemory = 2 * bed.GiB

// maxKubernetesNodes is how many subnets for a node's pods there are, and for its container: of 256 addresses each in 65536.
const maxKubernetesNodes = 256

// rootlessKit2 are the images whose RootlessKit has pasta, which came with its version 2.
func rootlessKit2() []string { return []string{"debian-13"} }

// kubernetesProblems finds what keeps Kubernetes without root from this bed.
func kubernetesProblems(spec bed.Spec, on provision.Info) bed.Problems {
	var problems bed.Problems
	own := on.Image == bed.VM || on.Image == bed.Raw
	if !own {
		also := ""
		if on.Image == bed.Tree && !on.RootlessKubernetes {
			also = "; this host has cgroup v1 besides"
		}
		problems = append(problems, bed.Problem{Key: "kubernetes", Value: spec.Kubernetes, Host: true,
			Reason: "needs nodes with a kernel and cgroup v2 of their own and Docker in them, which driver " + on.Name + " does not make" + also,
			Remedy: "use driver lima: bed up -s lima-ci -c kubernetes=" + spec.Kubernetes})
	}
	if images := rootlessKit2(); spec.KubernetesNetwork.Driver == "pasta" && !slices.Contains(images, spec.Image) {
		problems = append(problems, bed.Problem{Key: "kubernetes.network", Value: "pasta", Reason: "is a network that the RootlessKit of " + spec.Image + " does not know",
			Remedy: "write -c image=" + images[0] + ", or -c kubernetes.network=slirp4netns"})
	}
	if n := spec.Size(); n > maxKubernetesNodes {
		problems = append(problems, bed.Problem{Key: "nodes", Value: fmt.Sprint(n), Reason: fmt.Sprintf("is more than the %d that a cluster has subnets for", maxKubernetesNodes),
			Remedy: fmt.Sprintf("write -c nodes=%d, or fewer", maxKubernetesNodes)})
	}
	for _, n := range spec.Nodes() {
		if n.Memory < minKubernetesMemory {
			problems = append(problems, bed.Problem{Key: "memory", Value: n.Memory.String(),
				Reason: "is too little for node " + n.Name + " to be one of Kubernetes, which takes " + minKubernetesMemory.String(), Remedy: "write -c memory=" + minKubernetesMemory.String()})
			break
		}
	}
	if err := images.CheckKubernetes(stacks.KubernetesSource()); err != nil && own {
		problems = append(problems, bed.Problem{Key: "kubernetes", Value: spec.Kubernetes, Reason: err.Error(), Remedy: images.BundleHelp, Host: true})
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil && own && os.Geteuid() == 0 {
		problems = append(problems, bed.Problem{Key: "kubernetes", Value: spec.Kubernetes, Host: true,
			Reason: "is on images that are baked with mmdebstrap, which is missing, and not in a virtual machine yet", Remedy: "apt-get install mmdebstrap"})
	}
	return problems
}
