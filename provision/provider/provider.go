// Package provider shows drivers, images and Ansible to the Pulumi engine as the package "bedfellow".
//
// The provider has no configuration, and must never get any: a provider whose configuration changes replaces every resource
// under it. What a resource needs is among its inputs.
package provider

import (
	"context"
	"fmt"
	"os"

	p "github.com/pulumi/pulumi-go-provider"
	"github.com/pulumi/pulumi-go-provider/infer"
	"github.com/pulumi/pulumi/sdk/v3/go/common/tokens"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/drivers"
)

// Name of the Pulumi package.
const Name = "bedfellow"

// Version of the Pulumi package, as in its schema.
const Version = "0.1.0"

// EventsEnv names a file to which progress is appended as lines of JSON; without it, progress goes to the engine's log.
const EventsEnv = "BEDFELLOW_EVENTS"

// StackEnv names the stack, for hints of what to type.
const StackEnv = "BEDFELLOW_STACK"

// SimEnv names the journal of the simulated driver's machines.
const SimEnv = "BEDFELLOW_SIM"

// Host is what the resources reach the outside by. The zero value is the real one.
type Host struct {
	// OpenDriver returns a driver by name.
	OpenDriver func(name string) (provision.Driver, error)
	// Images is the directory of the image store; empty for its default.
	Images string
}

func (h Host) driver(name string, settings map[string]string) (provision.Driver, error) {
	if h.OpenDriver != nil {
		return h.OpenDriver(name)
	}
	return drivers.Open(name, drivers.Settings{SimJournal: os.Getenv(SimEnv), Ovirt: settings})
}

func (h Host) images() (*images.Store, error) { return drivers.Images(h.Images) }

// New builds the provider. Components are added to its four resources: they stand above this package, so their maker hands
// them in.
func New(h Host, components ...infer.InferredComponent) (p.Provider, error) {
	provider, err := infer.NewProviderBuilder().
		WithDisplayName("Bedfellow").
		WithDescription("Test beds on which HPC and Kubernetes share the same nodes.").
		WithNamespace("bedfellow").
		WithGoImportPath("github.com/bedfellow/bedfellow/stacks").
		WithLicense("Apache-2.0").
		WithResources(
			infer.Resource(&Image{host: h}), infer.Resource(&Keys{}), infer.Resource(&Pool{host: h}), infer.Resource(&Configuration{}),
		).
		WithComponents(components...).
		WithModuleMap(map[tokens.ModuleName]tokens.ModuleName{"provider": "index", "stacks": "index", "bed": "index", "provision": "index"}).
		Build()
	if err != nil {
		return p.Provider{}, fmt.Errorf("build the provider: %w", err)
	}
	return timed(provider), nil
}

// withProgress returns a context whose steps reach whoever runs the engine.
func withProgress(ctx context.Context) (context.Context, func()) {
	if path := os.Getenv(EventsEnv); path != "" {
		if f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
			return progress.With(ctx, progress.JSON(f)), func() { _ = f.Close() }
		}
	}
	log := p.GetLogger(ctx)
	return progress.With(ctx, func(e progress.Event) {
		switch e.Kind {
		case progress.Noted:
			log.Info(e.Detail)
		case progress.Done:
			log.InfoStatusf("%s: done in %.1f s", e.Step, e.Seconds)
		case progress.Failed: // the error itself follows from the resource
		default:
			log.InfoStatusf("%s: %s", e.Step, e.Detail)
		}
	}), func() {}
}
