package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	gossh "golang.org/x/crypto/ssh"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/drivers"
	"github.com/bedfellow/bedfellow/provision/lima"
	"github.com/bedfellow/bedfellow/provision/provider"
	"github.com/bedfellow/bedfellow/stacks"
	"github.com/bedfellow/bedfellow/stacks/engine"
)

func (a *app) ssh() *cobra.Command {
	c := &cobra.Command{
		Use: "ssh NODE [-- COMMAND...]", Short: "Enter a node, or run a command on it",
		Long: "Enters a node, named as `bed status` does or by its number, with the system's ssh.\nOnly the host key that was made for the node is accepted.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			w, s, err := a.standing(c.Context())
			if err != nil {
				return err
			}
			node, err := s.Inventory.Node(args[0])
			if err != nil {
				return err
			}
			config, err := writeSSHConfig(w, s.Inventory)
			if err != nil {
				return err
			}
			a.close()
			ssh := exec.CommandContext(c.Context(), "ssh", append([]string{"-F", config, node.Name, "--"}, args[1:]...)...)
			ssh.Stdin, ssh.Stdout, ssh.Stderr = os.Stdin, os.Stdout, os.Stderr
			err = ssh.Run()
			var exit *exec.ExitError
			if errors.As(err, &exit) && len(args) > 1 {
				return fmt.Errorf("on node %s: `%s` ended with status %d", node.Name, strings.Join(args[1:], " "), exit.ExitCode())
			}
			if errors.As(err, &exit) {
				return nil // the shell's last status is the person's own business
			}
			return err
		},
	}
	a.stackFlag(c)
	return c
}

// writeSSHConfig writes an ssh configuration and the host keys beside the bed's key, and returns its path.
func writeSSHConfig(w *engine.Workspace, inv bed.Inventory) (string, error) {
	dir := filepath.Dir(w.KeyFile())
	known := filepath.Join(dir, "known_hosts")
	config := filepath.Join(dir, "ssh_config")
	return config, errors.Join(os.WriteFile(known, []byte(remote.KnownHosts(inv)), 0o600), os.WriteFile(config, []byte(sshConfig(inv, w.KeyFile(), known)), 0o600))
}

func sshConfig(inv bed.Inventory, key, known string) string {
	return remote.SSHHosts(inv) + fmt.Sprintf("Host *\n  IdentityFile %q\n  IdentitiesOnly yes\n  IdentityAgent none\n  UserKnownHostsFile %q\n"+
		"  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n  HostKeyAlgorithms ssh-ed25519\n  LogLevel ERROR\n", key, known)
}

func (a *app) inventory() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use: "inventory", Short: "Print the bed's nodes for other tools",
		Long: "Prints the bed's nodes: as Bedfellow's own JSON, as an Ansible inventory, or as an ssh configuration\n(`bed inventory --format ssh > f; ssh -F f NODE`). No secret is printed; files name where the key lies. With lima it writes\na file for each node, with which `limactl start FILE` makes a machine like it, and prints the paths.",
		RunE: func(c *cobra.Command, _ []string) error {
			w, s, err := a.standing(c.Context())
			if err != nil {
				return err
			}
			config, err := writeSSHConfig(w, s.Inventory)
			if err != nil {
				return err
			}
			a.close()
			switch format {
			case "json":
				return printJSON(s.Inventory)
			case "ansible":
				inv := provider.AnsibleInventory(s.Inventory)
				vars := inv["all"].(map[string]any)["vars"].(map[string]any)
				vars["ansible_ssh_private_key_file"] = w.KeyFile()
				vars["ansible_ssh_common_args"] = "-F " + config
				return printJSON(inv)
			case "ssh":
				fmt.Print(sshConfig(s.Inventory, w.KeyFile(), filepath.Join(filepath.Dir(w.KeyFile()), "known_hosts")))
				return nil
			case "lima":
				return writeLima(w, s)
			default:
				return bed.Problems{{Key: "--format", Value: format, Reason: "is not a format; there is json, ansible, ssh, lima", Remedy: "write --format ssh"}}
			}
		},
	}
	c.Flags().StringVar(&format, "format", "json", "json, ansible, ssh or lima")
	a.stackFlag(c)
	return c
}

// writeLima writes a lima.yaml for each node and prints where.
func writeLima(w *engine.Workspace, s engine.Standing) error {
	spec, err := w.Spec()
	if err != nil {
		return err
	}
	store, err := drivers.Images("")
	if err != nil {
		return err
	}
	request := images.Request{Definition: spec.Image, Format: bed.VM}
	if spec.WorkloadManager == "flux" {
		request.Flux = stacks.FluxOf(spec.Flux)
	}
	if spec.Kubernetes != "none" {
		request.Kubernetes = stacks.KubernetesSource()
	}
	img, kept, err := store.Get(context.Background(), request)
	if err != nil {
		return err
	}
	if !kept {
		return bed.Problems{{Key: "image", Value: spec.Image, Host: true, Reason: "is not kept here in a form that virtual machines boot from", Remedy: "bed image build " + spec.Image + " --format vm"}}
	}
	signer, err := gossh.ParsePrivateKey(s.PrivateKey)
	if err != nil {
		return fmt.Errorf("the bed's user key: %w", err)
	}
	dir := filepath.Join(filepath.Dir(w.KeyFile()), "lima")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, n := range spec.Nodes() {
		text, err := lima.Standalone(provision.Machine{
			Name: n.Name, Owner: provision.Owner{Bed: spec.Name}, Index: n.Index, CPUs: n.CPUs, Memory: n.Memory, Disk: n.Disk, Image: img.Path,
			Network: spec.Network, User: s.Inventory.User, AuthorizedKey: strings.TrimSpace(string(gossh.MarshalAuthorizedKey(signer.PublicKey()))),
		})
		if err != nil {
			return err
		}
		path := filepath.Join(dir, n.Name+".yaml")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return err
		}
		fmt.Println(path)
	}
	return nil
}

func printJSON(v any) error {
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
