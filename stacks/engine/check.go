package engine

import (
	"context"
	"os"
	"os/exec"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/clouds"
	"github.com/bedfellow/bedfellow/provision/drivers"
	"github.com/bedfellow/bedfellow/stacks"
)

// Check finds everything about the configuration and the host that would keep the bed from being made, all at once.
func (w *Workspace) Check(ctx context.Context) (spec bed.Spec, err error) {
	go w.cli() // a third of a second, which the checks take too
	defer func() {
		if err != nil {
			_, _ = w.cli() // its process does not outlive the command that ends now
		}
	}()
	spec, problems := stacks.Parse(w.Stack, w.values)
	if len(problems) > 0 {
		return spec, problems
	}
	var made provision.Beds
	if clouds.Is(spec.Driver) {
		made, problems = checkCloud(ctx, spec)
	} else {
		made, problems, err = checkDriver(ctx, spec)
	}
	if err != nil {
		return spec, err
	}
	on := clouds.Info(spec.Driver)
	if made != nil {
		on = made.Info()
	}
	if spec.WorkloadManager == "flux" && on.Image != "" {
		if err := images.CheckFlux(stacks.FluxOf(spec.Flux), spec.Image); err != nil {
			problems = append(problems, bed.Problem{Key: "flux", Value: spec.Flux, Reason: err.Error(), Remedy: images.FluxHelp, Host: true})
		}
	}
	if spec.Kubernetes != "none" {
		problems = append(problems, kubernetesProblems(spec, on)...)
	}
	if len(problems) == 0 {
		problems = w.foreign(ctx, made, spec.Name)
	}
	return spec, problems.Err()
}

// checkDriver finds what keeps this host, or an engine, from making the bed.
func checkDriver(ctx context.Context, spec bed.Spec) (provision.Driver, bed.Problems, error) {
	d, err := drivers.Open(spec.Driver, drivers.Settings{Ovirt: spec.Settings})
	if err != nil {
		return nil, nil, err
	}
	problems := CheckHost(ctx, d)
	if fitter, ok := d.(provision.Fitter); ok {
		var list []provision.Machine
		for _, n := range spec.Nodes() {
			list = append(list, provision.Machine{Name: n.Name, Owner: provision.Owner{Bed: spec.Name}, Index: n.Index, Role: n.Role, CPUs: n.CPUs, Memory: n.Memory, Disk: n.Disk, Network: spec.Network})
		}
		problems = append(problems, fitter.Fit(ctx, list)...)
	}
	return d, problems, nil
}

// foreign finds a bed of the name that belongs to another state.
func (w *Workspace) foreign(ctx context.Context, d provision.Beds, name string) bed.Problems {
	found, _ := d.List(ctx, name)
	state := stacks.MarkedState(d.Info().Name, w.OwnerState())
	for _, st := range found {
		if want := (provision.Owner{Bed: name, State: state}); st.Owner.State != "" && !st.Owner.Same(want) {
			err := &provision.ForeignError{Have: st.Owner, Want: want}
			return bed.Problems{{Key: "name", Value: name, Reason: err.Error(), Remedy: "write -c name=…", Host: true}}
		}
	}
	return nil
}

// CheckHost finds what this host lacks to make beds by the driver, or in the cloud.
func CheckHost(ctx context.Context, d provision.Beds) []bed.Problem {
	problems := d.Check(ctx)
	if format := d.Info().Image; format != "" {
		if err := images.Architecture(format); err != nil && !clouds.Is(d.Info().Name) { // clouds have images of their own
			problems = append(problems, bed.Problem{Key: "driver", Value: d.Info().Name, Reason: err.Error(), Remedy: "use a host with that processor, or -c driver=nspawn", Host: true})
		}
		problems = append(problems, bakeTools(format != bed.Tree && (d.Info().Name == "lima" || os.Getenv(images.BakeEnv) == "vm"))...)
	}
	return problems
}

// bakeTools finds the commands that baking and configuring need. Root bakes here, unless a virtual machine can; others boot from what root has baked.
func bakeTools(elsewhere bool) []bed.Problem {
	var problems []bed.Problem
	need := map[string]string{"ansible-playbook": "ansible", "ssh": "openssh-client"}
	if os.Geteuid() == 0 && !elsewhere {
		need["mmdebstrap"] = "mmdebstrap"
	}
	for command, pkg := range need {
		if _, err := exec.LookPath(command); err != nil {
			problems = append(problems, bed.Problem{Reason: "the command " + command + " is missing", Remedy: "apt-get install " + pkg + " (`make tools` does)", Host: true})
		}
	}
	return problems
}
