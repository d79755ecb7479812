package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/clouds"
	"github.com/bedfellow/bedfellow/provision/drivers"
	"github.com/bedfellow/bedfellow/provision/provider"
	"github.com/bedfellow/bedfellow/stacks"
)

// OpenBeds opens a driver, or a cloud as the environment names it.
func OpenBeds(name string, s drivers.Settings) (provision.Beds, error) {
	if !clouds.Is(name) {
		return drivers.Open(name, s)
	}
	c, problems := openCloud(bed.Spec{Driver: name})
	return c, problems.Err()
}

// openCloud opens the bed's cloud; what keeps that from being done is a problem with its remedy.
func openCloud(spec bed.Spec) (clouds.Cloud, bed.Problems) {
	var problems bed.Problems
	c, err := clouds.Open(spec.Driver, spec.Settings)
	switch {
	case errors.Is(err, clouds.ErrNotBuilt):
		return nil, bed.Problems{{Key: "driver", Value: spec.Driver, Reason: err.Error(), Remedy: "`make tools DRIVER=" + spec.Driver + "` builds it with them", Host: true}}
	case errors.As(err, &problems):
		return nil, problems
	case err != nil:
		return nil, bed.Problems{{Key: "driver", Value: spec.Driver, Reason: err.Error(), Remedy: "see docs/clouds.md", Host: true}}
	}
	return c, nil
}

// checkCloud finds what keeps the cloud from making the bed.
func checkCloud(ctx context.Context, spec bed.Spec) (provision.Beds, bed.Problems) {
	c, problems := openCloud(spec)
	if len(problems) > 0 {
		return nil, problems
	}
	if problems = append(clouds.CheckHost(spec), CheckHost(ctx, c)...); len(problems) == 0 {
		problems = c.Fit(ctx, spec)
	}
	return c, problems
}

// clearCloud removes what bears this stack's mark in its cloud.
func (w *Workspace) clearCloud(ctx context.Context, spec bed.Spec) error {
	c, problems := openCloud(spec)
	if err := problems.Err(); err != nil {
		return fmt.Errorf("look for it in the cloud: %w", err)
	}
	return provider.ClearState(ctx, c, stacks.CloudState(w.OwnerState()))
}
