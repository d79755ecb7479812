package main

import (
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/provision/clouds"
	"github.com/bedfellow/bedfellow/stacks/engine"
)

func (a *app) up() *cobra.Command {
	c := &cobra.Command{
		Use: "up", Short: "Make the bed, or bring it to its configuration",
		RunE: func(c *cobra.Command, _ []string) error {
			w, err := a.workspace()
			if err != nil {
				return err
			}
			step := progress.Start(c.Context(), "up %s", w.Stack)
			s, err := w.Up(c.Context())
			step.EndWith(changes(s.Changes), err)
			if err != nil {
				return err
			}
			return a.print(map[string]any{"inventory": s.Inventory, "changes": s.Changes}, func() { printNodes(s.Inventory) })
		},
	}
	a.stackFlag(c)
	a.configFlag(c, "kept in .bed/config")
	return c
}

func (a *app) preview() *cobra.Command {
	var priceFile string
	c := &cobra.Command{
		Use: "preview", Short: "Say what up would do, and do nothing",
		Long: "Says what up would do, and does nothing. Of a bed in a cloud it says first what it takes and about what it costs, before anybody is asked:\n" +
			"by the list of prices in this build, or in the file that --prices names.",
		RunE: func(c *cobra.Command, _ []string) error {
			w, err := a.workspace()
			if err != nil {
				return err
			}
			result := map[string]any{}
			estimate, err := a.estimate(w, priceFile)
			if err != nil {
				return err
			}
			if estimate != nil {
				result["estimate"] = estimate
				if a.output != "json" {
					fmt.Println(estimate)
				}
			}
			diff, err := w.Preview(c.Context())
			if err != nil {
				if estimate != nil && a.output == "json" {
					err = errors.Join(err, a.print(result, nil))
				}
				return err
			}
			result["changes"] = diff
			return a.print(result, func() { fmt.Println(changes(diff)) })
		},
	}
	a.stackFlag(c)
	a.configFlag(c, "for this call alone")
	c.Flags().StringVar(&priceFile, "prices", "", "a list of prices, in the form of provision/clouds/prices.json")
	return c
}

// estimate is what the stack's bed takes and costs; nil where it is in no cloud.
func (a *app) estimate(w *engine.Workspace, priceFile string) (*clouds.Estimate, error) {
	prices, err := clouds.ReadPrices(priceFile)
	if err != nil {
		return nil, err
	}
	spec, err := w.Spec()
	if err != nil || !clouds.Is(spec.Driver) {
		return nil, err
	}
	e := clouds.EstimateOf(spec, prices)
	return &e, nil
}

func (a *app) refresh() *cobra.Command {
	c := &cobra.Command{
		Use: "refresh", Short: "Look at the machines and record what is found",
		RunE: func(c *cobra.Command, _ []string) error {
			w, err := a.reaching()
			if err != nil {
				return err
			}
			diff, err := w.Refresh(c.Context())
			if err != nil {
				return err
			}
			return a.print(map[string]any{"changes": diff}, func() { fmt.Println(changes(diff)) })
		},
	}
	a.stackFlag(c)
	a.configFlag(c, "for this call alone, of where the engine is and who you are there: ovirt.url, ovirt.password and so on")
	return c
}

func (a *app) destroy() *cobra.Command {
	c := &cobra.Command{
		Use: "destroy", Short: "Remove the bed and everything of it; images stay",
		RunE: func(c *cobra.Command, _ []string) error {
			w, err := a.reaching()
			if err != nil {
				return err
			}
			step := progress.Start(c.Context(), "destroy %s", w.Stack)
			err = step.End(w.Destroy(c.Context()))
			if err != nil {
				return err
			}
			return a.print(map[string]any{"destroyed": w.Stack}, func() {})
		},
	}
	a.stackFlag(c)
	a.configFlag(c, "for this call alone, of where the engine is and who you are there: ovirt.url, ovirt.password and so on")
	return c
}

func (a *app) status() *cobra.Command {
	c := &cobra.Command{
		Use: "status", Short: "Show the bed and how its machines are now",
		RunE: func(c *cobra.Command, _ []string) error {
			w, s, err := a.standing(c.Context())
			if err != nil {
				return err
			}
			machines, profile, err := w.Machines(c.Context(), s)
			if err != nil {
				return err
			}
			return a.print(map[string]any{"inventory": s.Inventory, "profile": profile, "machines": machines}, func() { printStatus(s.Inventory, profile, machines) })
		},
	}
	a.stackFlag(c)
	return c
}

// changes says in words what the engine did: "1 created, 3 unchanged".
func changes(counts map[string]int) string {
	words := map[string]string{"same": "unchanged", "create": "created", "update": "updated", "delete": "deleted", "replace": "replaced"}
	var parts []string
	for kind, n := range counts {
		word, ok := words[kind]
		if !ok {
			word = kind
		}
		parts = append(parts, fmt.Sprintf("%d %s", n, word))
	}
	sort.Strings(parts)
	return strings.Join(parts, ", ")
}

func printNodes(inv bed.Inventory) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	defer w.Flush()
	fmt.Fprintln(w, "NODE\tROLE\tADDRESS\tCPUS\tMEMORY\tHOST CPUS")
	for _, n := range inv.Nodes {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", n.Name, n.Role, n.Address, n.CPUs, bed.Size(n.MemoryMiB)*bed.MiB, hostCPUs(n))
	}
}

func hostCPUs(n bed.InventoryNode) string {
	switch {
	case n.HostCPUs == "":
		return "any"
	case n.Oversubscribed:
		return n.HostCPUs + " (shared)"
	default:
		return n.HostCPUs
	}
}

func printStatus(inv bed.Inventory, profile string, machines []engine.Machine) {
	fmt.Printf("bed %s: driver %s, image %s, workload manager %s, profile %s\n\n", inv.Bed, inv.Driver, inv.Image, inv.WorkloadManager, profile)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	defer w.Flush()
	fmt.Fprintln(w, "NODE\tROLE\tADDRESS\tSTATE\tDETAIL")
	for i, n := range inv.Nodes {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", n.Name, n.Role, n.Address, machines[i].State, machines[i].Detail)
	}
}
