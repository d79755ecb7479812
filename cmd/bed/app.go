package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/provision/ovirt"
	"github.com/bedfellow/bedfellow/provision/provider"
	"github.com/bedfellow/bedfellow/stacks"
	"github.com/bedfellow/bedfellow/stacks/engine"
)

// app holds the flags that many commands share.
type app struct {
	dir      string
	stack    string
	output   string
	settings []string
	// endProgress leaves the screen to what is printed next.
	endProgress func()
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "bed",
		Short: "Test beds on which HPC and Kubernetes share the same nodes",
		Long: "bed makes reproducible test beds on which HPC and Kubernetes share the same nodes, and runs the experiments\n" +
			"that tell whether they get on. Results go to standard output, progress to standard error.",
		Version: provider.Version, SilenceUsage: true, SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if a.output != "text" && a.output != "json" {
				return bed.Problems{{Key: "--output", Value: a.output, Reason: "is not a form of output; there is text, json", Remedy: "write -o json"}}
			}
			cmd.SetContext(progress.With(cmd.Context(), a.sink()))
			a.findInputs()
			return nil
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	flags := root.PersistentFlags()
	flags.StringVar(&a.dir, "dir", ".", "a folder in the clone")
	flags.StringVarP(&a.output, "output", "o", "text", "text or json")
	root.AddCommand(
		a.up(), a.preview(), a.refresh(), a.destroy(), a.status(), a.ssh(), a.inventory(), a.kubeconfig(), a.doctor(), a.image(), a.bundle(), a.lock(), a.sweep(),
		a.run(), a.report(),
	)
	group(root)
	for _, c := range root.Commands() {
		if c.Args == nil {
			c.Args = cobra.NoArgs
		}
		wrapArgs(c)
	}
	return root
}

// group makes a command that only holds others refuse what is none of them.
func group(c *cobra.Command) {
	c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		var names []string
		for _, sub := range c.Commands() {
			names = append(names, sub.Name())
		}
		return &usageError{fmt.Errorf("%s has no command %q; there is %s", c.CommandPath(), args[0], strings.Join(names, ", "))}
	}
}

// wrapArgs makes a wrong number of arguments a usage error.
func wrapArgs(c *cobra.Command) {
	check := c.Args
	c.Args = func(c *cobra.Command, args []string) error {
		if check == nil {
			return nil
		}
		if err := check(c, args); err != nil {
			return &usageError{fmt.Errorf("%w\n\n%s", err, c.UsageString())}
		}
		return nil
	}
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
}

// sink shows progress: live on a terminal, as lines elsewhere, as lines of JSON when JSON is asked for.
func (a *app) sink() progress.Sink {
	if a.output == "json" {
		return progress.JSON(os.Stderr)
	}
	sink, done := progress.Display(os.Stderr)
	a.endProgress = sync.OnceFunc(done)
	return sink
}

func (a *app) close() {
	if a.endProgress != nil {
		a.endProgress()
	}
}

// findInputs has this command, and the engine's plugin under it, go by what lies beside Pulumi.yaml: a lock, if there is one, and the module
// of Kubernetes.
func (a *app) findInputs() {
	root, err := engine.Find(a.dir)
	if err != nil {
		return
	}
	if path := filepath.Join(root, images.LockFile); os.Getenv(images.LockEnv) == "" && exists(path) {
		_ = os.Setenv(images.LockEnv, path)
	}
	if os.Getenv(images.KubernetesEnv) == "" {
		_ = os.Setenv(images.KubernetesEnv, filepath.Join(root, "images", "kubernetes"))
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (a *app) stackFlag(c *cobra.Command) {
	c.Flags().StringVarP(&a.stack, "stack", "s", "quickstart", "the stack, which is a preset or one you wrote")
}

func (a *app) configFlag(c *cobra.Command, kept string) {
	c.Flags().StringArrayVarP(&a.settings, "config", "c", nil, "a configuration value, key=value; "+kept)
}

// workspace opens the stack the flags name.
func (a *app) workspace() (*engine.Workspace, error) {
	root, err := engine.Find(a.dir)
	if err != nil {
		return nil, err
	}
	settings := map[string]string{}
	for _, s := range a.settings {
		key, value, ok := strings.Cut(s, "=")
		if !ok || key == "" {
			return nil, bed.Problems{{Key: "-c", Value: s, Reason: "is not a key and a value", Remedy: "write -c key=value"}}
		}
		settings[key] = value
	}
	return engine.Open(root, a.stack, settings)
}

// reaching opens the workspace of a bed that stands. Settings are of the engine alone that it is on: the bed is what it is.
func (a *app) reaching() (*engine.Workspace, error) {
	for _, s := range a.settings {
		key, _, _ := strings.Cut(strings.TrimPrefix(s, stacks.Namespace+":"), "=")
		name, ofEngine := strings.CutPrefix(key, "ovirt.")
		if connection, _ := ovirt.Split(map[string]string{name: ""}); !ofEngine || len(connection) == 0 {
			return nil, bed.Problems{{Key: key, Reason: "changes a bed, and this changes none", Remedy: "change it by `bed up -c`; here -c is for where an engine is and who you are there, such as ovirt.password"}}
		}
	}
	return a.workspace()
}

// standing reads the bed of the stack the flags name.
func (a *app) standing(ctx context.Context) (*engine.Workspace, engine.Standing, error) {
	w, err := a.workspace()
	if err != nil {
		return nil, engine.Standing{}, err
	}
	s, err := w.Standing(ctx)
	return w, s, err
}

// print writes a result: as JSON when asked for, else by text.
func (a *app) print(v any, text func()) error {
	a.close() // progress is over
	if a.output != "json" {
		text()
		return nil
	}
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
