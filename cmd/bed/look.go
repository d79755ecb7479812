package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision/provider"
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
	var hosts strings.Builder
	for _, n := range inv.Nodes {
		fmt.Fprintf(&hosts, "%s %s\n", n.Name, n.HostKey)
	}
	config := filepath.Join(dir, "ssh_config")
	return config, errors.Join(os.WriteFile(known, []byte(hosts.String()), 0o600), os.WriteFile(config, []byte(sshConfig(inv, w.KeyFile(), known)), 0o600))
}

func sshConfig(inv bed.Inventory, key, known string) string {
	var b strings.Builder
	for _, n := range inv.Nodes {
		fmt.Fprintf(&b, "Host %s\n  HostName %s\n  Port %d\n  HostKeyAlias %s\n", n.Name, n.Address, n.Port, n.Name)
	}
	fmt.Fprintf(&b, "Host *\n  User %s\n  IdentityFile %q\n  IdentitiesOnly yes\n  IdentityAgent none\n  UserKnownHostsFile %q\n"+
		"  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n  HostKeyAlgorithms ssh-ed25519\n  LogLevel ERROR\n", inv.User, key, known)
	return b.String()
}

func (a *app) inventory() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use: "inventory", Short: "Print the bed's nodes for other tools",
		Long: "Prints the bed's nodes: as Bedfellow's own JSON, as an Ansible inventory, or as an ssh configuration\n(`bed inventory --format ssh > f; ssh -F f NODE`). No secret is printed; files name where the key lies.",
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
			default:
				return bed.Problems{{Key: "--format", Value: format, Reason: "is not a format; there is json, ansible, ssh", Remedy: "write --format ssh"}}
			}
		},
	}
	c.Flags().StringVar(&format, "format", "json", "json, ansible or ssh")
	a.stackFlag(c)
	return c
}

func printJSON(v any) error {
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
