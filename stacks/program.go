// Package stacks says what a bed is made of, as Pulumi.
package stacks

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pulumi/pulumi/sdk/v3/go/pulumi"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision/clouds"
	"github.com/bedfellow/bedfellow/provision/drivers"
	"github.com/bedfellow/bedfellow/provision/ovirt"
)

// Namespace of the configuration keys.
const Namespace = "bedfellow"

// Known is what this build offers to a configuration.
func Known() bed.Known {
	known := bed.Known{Drivers: slices.Concat(drivers.Names(), clouds.Names()), WorkloadManagers: []string{"slurm", "flux"}, Kubernetes: append([]string{"none"}, bed.KubernetesKinds()...)}
	for _, d := range images.Definitions() {
		known.Images = append(known.Images, d.Name)
	}
	return known
}

// Parse makes a Spec of a stack's configuration values, as bed.Parse does, and checks the driver's own keys too. Nobody is asked anything.
func Parse(stack string, values map[string]string) (bed.Spec, bed.Problems) {
	spec, problems := bed.Parse(stack, values, Known())
	problems = append(problems, drivers.CheckSettings(spec.Driver, spec.Settings)...)
	problems = append(problems, clouds.Check(spec)...)
	return spec, append(problems, clouds.Shape(&spec, values)...)
}

// Program is the Pulumi program of every stack: it reads the stack's configuration, checks it, and makes the bed.
func Program(ctx *pulumi.Context) error {
	state, err := stateURL()
	if err != nil {
		return err
	}
	return ProgramIn(state)(ctx)
}

// ProgramIn is Program for a state whose URL is known.
func ProgramIn(state string) pulumi.RunFunc {
	return func(ctx *pulumi.Context) error { return program(ctx, state) }
}

func program(ctx *pulumi.Context, state string) error {
	values, err := configuredValues(ctx)
	if err != nil {
		return err
	}
	if _, preset := Preset(ctx.Stack()); preset && len(values) == 0 { // Pulumi does not read it, and would make what the defaults are
		return fmt.Errorf("stack %[1]s has no configuration, and the preset of that name counts once it is there: cp stacks/Pulumi.%[1]s.yaml .bed/config/", ctx.Stack())
	}
	spec, problems := Parse(ctx.Stack(), values)
	problems = append(problems, clouds.CheckHost(spec)...)
	if err := problems.Err(); err != nil {
		return fmt.Errorf("the configuration of stack %s will not do:\n%w", ctx.Stack(), err)
	}
	// Not the engine's default provider: that takes the stack's configuration for the provider's own, and a key "name" in it for
	// the name of a plugin.
	own := &ownProvider{}
	if err := ctx.RegisterResource("pulumi:providers:"+Namespace, Namespace, pulumi.Map{}, own); err != nil {
		return err
	}
	b, err := NewBed(ctx, spec.Name, Args(spec, OwnerState(state, ctx.Stack())), pulumi.Providers(own))
	if err != nil {
		return err
	}
	ctx.Export("inventory", b.Inventory)
	ctx.Export("privateKey", b.PrivateKey)
	return nil
}

// OwnerState is the state in the mark of a stack's beds: two stacks of one state are two owners.
func OwnerState(url, stack string) string { return url + "#" + stack }

// MarkedState is the state in the mark of a driver's beds. In an engine or a cloud other hosts mark things too, and a file is one host's: its name is
// in the mark, and of hosts of one name, as runners of one image are, what systemd calls the machine's id, which machine-id(5) has hashed.
func MarkedState(driver, state string) string {
	path, local := strings.CutPrefix(state, "file://")
	host, err := os.Hostname()
	if !local || err != nil || !clouds.Is(driver) && driver != "ovirt" {
		return state
	}
	if id, err := os.ReadFile("/etc/machine-id"); err == nil {
		sum := sha256.Sum256(append([]byte("bedfellow "), bytes.TrimSpace(id)...))
		host += "-" + hex.EncodeToString(sum[:4])
	}
	return "file://" + host + path
}

// AbsoluteState is the URL of a state that is a file, as Pulumi takes it in a folder: of ~ and of what is relative many hosts and folders have one.
func AbsoluteState(url, dir string) string {
	path, local := strings.CutPrefix(url, "file://")
	home, err := os.UserHomeDir()
	switch {
	case !local || filepath.IsAbs(path):
		return url
	case (path == "~" || strings.HasPrefix(path, "~/")) && err == nil:
		return "file://" + filepath.Join(home, path[1:])
	}
	return "file://" + filepath.Join(dir, path)
}

// Args asks for what the spec says.
func Args(s bed.Spec, state string) BedArgs {
	args := BedArgs{
		Name: s.Name, Driver: s.Driver, Image: s.Image, WorkloadManager: s.WorkloadManager, Network: s.Network, Slow: s.Profile == "slow",
		State: MarkedState(s.Driver, state),
	}
	args.Settings = s.Settings
	if s.Driver == "ovirt" {
		_, args.Settings = ovirt.Split(s.Settings) // who one is at an engine, secrets among it, is in no state
	}
	if s.WorkloadManager == "flux" {
		args.Flux = FluxOf(s.Flux)
		if s.FluxSettings != (bed.FluxSettings{}) {
			args.FluxSettings = &s.FluxSettings
		}
	}
	if s.Kubernetes != "none" {
		args.Kubernetes, args.KubernetesNetwork, args.KubernetesFor = KubernetesSource(), &s.KubernetesNetwork, s.Kubernetes
	}
	if s.TTL > 0 {
		args.TTL = s.TTL.String()
	}
	for _, n := range s.Nodes() {
		args.Nodes = append(args.Nodes, BedNode{
			Name: n.Name, Index: n.Index, Role: string(n.Role), CPUs: n.CPUs, MemoryMiB: int(n.Memory / bed.MiB), DiskMiB: int(n.Disk / bed.MiB), Type: n.Type,
		})
	}
	return args
}

// FluxOf is the Flux that an image gets: what the configuration names, or the environment, or the lock. A path is made absolute, for
// the engine works elsewhere.
func FluxOf(configured string) string {
	flux := configured
	if flux == "" {
		flux = os.Getenv(images.FluxEnv)
	}
	switch {
	case flux == "":
		return images.FluxPinned
	case flux == images.FluxPinned || strings.Contains(flux, "://"):
		return flux
	}
	if path, err := filepath.Abs(flux); err == nil {
		return path
	}
	return flux
}

// KubernetesSource is where Kubernetes comes from, see images.Request: what the environment says, as `bed` has it do, or the Go module of
// the clone in whose folder the program runs.
func KubernetesSource() string {
	if dir := os.Getenv(images.KubernetesEnv); dir != "" {
		return dir
	}
	dir, err := filepath.Abs(filepath.Join("images", "kubernetes"))
	if err != nil {
		return filepath.Join("images", "kubernetes")
	}
	return dir
}

// configuredValues are all of the stack's values in our namespace. A program that the CLI starts gets them in its environment,
// unknown keys included; one that runs inside `bed`, which has refused those already, can only ask for keys it knows.
func configuredValues(ctx *pulumi.Context) (map[string]string, error) {
	values, all := map[string]string{}, map[string]string{}
	if env := os.Getenv(pulumi.EnvConfig); env != "" {
		if err := json.Unmarshal([]byte(env), &all); err != nil {
			return nil, fmt.Errorf("read the stack's configuration from %s: %w", pulumi.EnvConfig, err)
		}
	}
	for key, value := range all {
		if name, ok := strings.CutPrefix(key, Namespace+":"); ok {
			values[name] = value
		}
	}
	for _, name := range bed.Keys() {
		if value, ok := ctx.GetConfig(Namespace + ":" + name); ok {
			values[name] = value
		}
	}
	return values, nil
}

// stateURL finds where Pulumi keeps this state, as the CLI does: the environment first, then the backend last logged in to.
func stateURL() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	if url := os.Getenv("PULUMI_BACKEND_URL"); url != "" {
		return AbsoluteState(url, dir), nil
	}
	home := os.Getenv("PULUMI_HOME")
	if home == "" {
		user, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("find Pulumi's state: %w; set PULUMI_BACKEND_URL", err)
		}
		home = filepath.Join(user, ".pulumi")
	}
	data, err := os.ReadFile(filepath.Join(home, "credentials.json"))
	if err != nil {
		return "", fmt.Errorf("find Pulumi's state: %w; set PULUMI_BACKEND_URL or run `pulumi login`", err)
	}
	var credentials struct{ Current string }
	if err := json.Unmarshal(data, &credentials); err != nil || credentials.Current == "" {
		return "", fmt.Errorf("find Pulumi's state: %s names no current backend; set PULUMI_BACKEND_URL or run `pulumi login`", filepath.Join(home, "credentials.json"))
	}
	return AbsoluteState(credentials.Current, dir), nil
}
