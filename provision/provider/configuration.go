package provider

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"strings"
	"time"

	p "github.com/pulumi/pulumi-go-provider"
	"github.com/pulumi/pulumi-go-provider/infer"
	"golang.org/x/crypto/ssh"

	"github.com/bedfellow/bedfellow/pkg/ansible"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/playbooks"
	"github.com/bedfellow/bedfellow/provision/clouds"
)

// Configuration is one run of Ansible over a bed. It runs again when the nodes, their disks, the keys or the playbooks change, or
// the bed's own Kubernetes is found stopped, and does nothing otherwise.
type Configuration struct{}

// ConfigurationArgs say what is configured.
type ConfigurationArgs struct {
	Inventory    bed.Inventory     `pulumi:"inventory"`
	PrivateKey   string            `pulumi:"privateKey" provider:"secret"`
	MungeKey     string            `pulumi:"mungeKey" provider:"secret"`
	CurveKey     string            `pulumi:"curveKey,optional" provider:"secret"`
	FluxSettings *bed.FluxSettings `pulumi:"fluxSettings,optional"`
	Slow         bool              `pulumi:"slow,optional"`
	// Playbooks is filled in by Check: it makes a changed role run.
	Playbooks string `pulumi:"playbooks,optional"`
}

// ConfigurationState says what a run did.
type ConfigurationState struct {
	ConfigurationArgs
	Changed int `pulumi:"changed"`
}

// Annotate describes the resource in the schema.
func (c *Configuration) Annotate(a infer.Annotator) {
	a.Describe(c, "One Ansible run over a bed's nodes; it runs again when its inputs change.")
}

// Annotate describes the inputs in the schema.
func (c *ConfigurationArgs) Annotate(a infer.Annotator) {
	a.Describe(&c.Inventory, "The nodes, as a Pool shows them.")
	a.Describe(&c.PrivateKey, "Logs in to every node; OpenSSH PEM.")
	a.Describe(&c.MungeKey, "base64")
	a.Describe(&c.CurveKey, "The ZeroMQ CURVE certificate of Flux's brokers.")
	a.Describe(&c.FluxSettings, "Quorum and policies of the Flux system instance; zero and empty are the role's own.")
	a.Describe(&c.Slow, "Emulated machines: waits are longer.")
	a.Describe(&c.Playbooks, "Digest of the playbooks; filled in by the provider.")
}

// Annotate describes the outputs in the schema.
func (c *ConfigurationState) Annotate(a infer.Annotator) {
	a.Describe(&c.Changed, "How many tasks changed something in the last run, over all nodes.")
}

// Check fills in the playbooks' digest.
func (*Configuration) Check(ctx context.Context, req infer.CheckRequest) (infer.CheckResponse[ConfigurationArgs], error) {
	args, failures, err := infer.DefaultCheck[ConfigurationArgs](ctx, req.NewInputs)
	if err != nil {
		return infer.CheckResponse[ConfigurationArgs]{}, err
	}
	args.Playbooks, err = playbooksDigest()
	return infer.CheckResponse[ConfigurationArgs]{Inputs: args, Failures: failures}, err
}

func playbooksDigest() (string, error) {
	h := sha256.New()
	err := fs.WalkDir(playbooks.FS, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(playbooks.FS, path)
		fmt.Fprintf(h, "%s %d\n%s", path, len(data), data)
		return err
	})
	return hex.EncodeToString(h.Sum(nil)[:16]), err
}

// Read looks whether the bed's own Kubernetes runs on every node that answers: a scenario that was killed has left it stopped.
func (*Configuration) Read(ctx context.Context, req infer.ReadRequest[ConfigurationArgs, ConfigurationState]) (infer.ReadResponse[ConfigurationArgs, ConfigurationState], error) {
	ctx, done := withProgress(ctx)
	defer done()
	state := req.State
	if stopped := withoutKubernetes(ctx, state.ConfigurationArgs); len(stopped) > 0 {
		progress.Note(ctx, "Kubernetes does not run on %s", strings.Join(stopped, ", "))
		state.Playbooks = "" // which has them run again
	}
	return infer.ReadResponse[ConfigurationArgs, ConfigurationState]{ID: req.ID, Inputs: req.Inputs, State: state}, nil
}

// withoutKubernetes lists the nodes that say that the bed's own does not run on them. Those that say nothing are the Pool's affair.
func withoutKubernetes(ctx context.Context, args ConfigurationArgs) (stopped []string) {
	if args.Inventory.Kubernetes != bed.OwnKubernetes {
		return nil
	}
	signer, err := ssh.ParsePrivateKey([]byte(args.PrivateKey))
	if err != nil {
		return nil // Ansible will say so
	}
	patience := askTimeout
	if args.Slow {
		patience *= 6
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	nodes := args.Inventory.Nodes
	said := make([]string, len(nodes))
	_ = remote.Each(ctx, nodes, 32, func(ctx context.Context, i int, n bed.InventoryNode) error {
		client, err := remote.Dial(ctx, remote.Node(args.Inventory, n, signer))
		if err != nil {
			return err
		}
		defer client.Close()
		out, err := client.Run(ctx, "docker ps -q --filter name=^usernetes-node$ | grep -q . || echo stopped")
		said[i] = strings.TrimSpace(string(out.Stdout))
		return err
	})
	for i, n := range nodes {
		if said[i] == "stopped" {
			stopped = append(stopped, n.Name)
		}
	}
	return stopped
}

// Create runs Ansible.
func (*Configuration) Create(ctx context.Context, req infer.CreateRequest[ConfigurationArgs]) (infer.CreateResponse[ConfigurationState], error) {
	state, err := configure(ctx, req.Inputs, req.DryRun)
	return infer.CreateResponse[ConfigurationState]{ID: req.Name, Output: state}, err
}

// Update runs it again.
func (*Configuration) Update(ctx context.Context, req infer.UpdateRequest[ConfigurationArgs, ConfigurationState]) (infer.UpdateResponse[ConfigurationState], error) {
	state, err := configure(ctx, req.Inputs, req.DryRun)
	return infer.UpdateResponse[ConfigurationState]{Output: state}, err
}

// Diff compares the inputs as a whole.
func (*Configuration) Diff(_ context.Context, req infer.DiffRequest[ConfigurationArgs, ConfigurationState]) (infer.DiffResponse, error) {
	diff := infer.DiffResponse{DetailedDiff: map[string]p.PropertyDiff{}}
	old, now := req.State.ConfigurationArgs, req.Inputs
	mark := func(field string, changed bool) {
		if changed {
			diff.HasChanges, diff.DetailedDiff[field] = true, p.PropertyDiff{Kind: p.Update, InputDiff: true}
		}
	}
	mark("inventory", !reflect.DeepEqual(old.Inventory, now.Inventory))
	mark("privateKey", old.PrivateKey != now.PrivateKey)
	mark("mungeKey", old.MungeKey != now.MungeKey)
	mark("fluxSettings", !reflect.DeepEqual(old.FluxSettings, now.FluxSettings))
	mark("curveKey", old.CurveKey != now.CurveKey)
	mark("playbooks", old.Playbooks != now.Playbooks)
	return diff, nil
}

func configure(ctx context.Context, args ConfigurationArgs, dryRun bool) (ConfigurationState, error) {
	state := ConfigurationState{ConfigurationArgs: args}
	if dryRun {
		return state, nil
	}
	ctx, done := withProgress(ctx)
	defer done()
	if clouds.Is(args.Inventory.Driver) { // its machines run, and may not have booted yet
		if err := awaitNodes(ctx, args); err != nil {
			return state, fmt.Errorf("configure bed %s: %w", args.Inventory.Bed, err)
		}
	}
	vars := args.vars()
	enter := "bed ssh %s"
	if stack := os.Getenv(StackEnv); stack != "" {
		enter += " -s " + stack
	}
	result, err := ansible.Run{
		Enter:     enter,
		Playbooks: playbooks.FS, Playbook: "site.yml", Inventory: ansibleInventory(args),
		ExtraVars: vars, Slow: args.Slow,
		PrivateKey: []byte(args.PrivateKey), KnownHosts: []byte(remote.KnownHosts(args.Inventory)), SSHHosts: []byte(remote.SSHHosts(args.Inventory)),
		Forks: min(max(len(args.Inventory.Nodes), 5), 50),
	}.Do(ctx)
	state.Changed = result.Changed
	if err != nil {
		return state, fmt.Errorf("configure bed %s: %w", args.Inventory.Bed, err)
	}
	return state, nil
}

// bootTimeout is how long a rented machine may take until its sshd answers: one in the metal boots for minutes.
const bootTimeout = 15 * time.Minute

// awaitNodes waits until every node's sshd answers.
func awaitNodes(ctx context.Context, args ConfigurationArgs) error {
	signer, err := ssh.ParsePrivateKey([]byte(args.PrivateKey))
	if err != nil {
		return fmt.Errorf("the bed's user key: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, bootTimeout, fmt.Errorf("its sshd did not answer within %v; look at its console with the cloud's own tools", bootTimeout))
	defer cancel()
	step := progress.Start(ctx, "wait for the nodes of %s", args.Inventory.Bed)
	err = remote.Each(ctx, args.Inventory.Nodes, len(args.Inventory.Nodes), func(ctx context.Context, _ int, n bed.InventoryNode) error {
		if err := remote.Await(ctx, remote.Node(args.Inventory, n, signer)); err != nil {
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
		return nil
	})
	step.EndWith("", err)
	return err
}

// vars are the roles' variables. Ansible takes every string for a template, and the letters of a CURVE key make one now and then.
func (args ConfigurationArgs) vars() map[string]any {
	vars := map[string]any{"bed_munge_key": args.MungeKey, "bed_curve_key": base64.StdEncoding.EncodeToString([]byte(args.CurveKey))}
	if args.Slow {
		vars["slurm_wait_seconds"], vars["flux_wait_seconds"] = 600, 900
		vars["bed_slow"] = true
	}
	if f := args.FluxSettings; f != nil {
		for name, v := range map[string]any{"bed_flux_mode": f.Mode, "flux_quorum": f.Quorum, "flux_queue_policy": f.QueuePolicy, "flux_match_policy": f.MatchPolicy} {
			if v != "" && v != 0 {
				vars[name] = v
			}
		}
	}
	return vars
}

// ansibleInventory renders the bed as the roles expect it.
func ansibleInventory(args ConfigurationArgs) map[string]any { return AnsibleInventory(args.Inventory) }

// AnsibleInventory renders the bed as an Ansible inventory in its YAML form, without any secret: what our roles run on and
// `bed inventory --format ansible` prints. How a node is reached by its name is in a configuration of ssh, remote.SSHHosts.
func AnsibleInventory(inv bed.Inventory) map[string]any {
	control, compute := map[string]any{}, map[string]any{}
	for _, n := range inv.Nodes {
		host := map[string]any{
			"ansible_user": inv.User,
			"bed_address":  n.BedAddress, "bed_cpus": n.CPUs, "bed_memory_mib": n.MemoryMiB,
		}
		if n.Role == bed.Control || len(inv.Nodes) == 1 {
			control[n.Name] = host
		}
		if n.Role == bed.Compute {
			compute[n.Name] = host
		}
	}
	vars := map[string]any{
		"bed_name": inv.Bed, "bed_driver": inv.Driver, "bed_shared_kernel": inv.SharedKernel, "bed_workload_manager": inv.WorkloadManager, "bed_kubernetes": inv.Kubernetes,
		"bed_user": inv.User,
	}
	if n := inv.KubernetesNetwork; n != nil {
		vars["bed_kubernetes_network"], vars["bed_kubernetes_mtu"] = n.Driver, n.MTU
	}
	return map[string]any{"all": map[string]any{
		"vars":     vars,
		"children": map[string]any{"control": map[string]any{"hosts": control}, "compute": map[string]any{"hosts": compute}},
	}}
}
