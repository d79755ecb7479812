package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/pulumi/pulumi/sdk/v3/go/common/apitype"

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

// asPool writes what a state has of a bed in a cloud as it has a Pool's.
func asPool(spec bed.Spec, keys, machines json.RawMessage) (json.RawMessage, error) {
	var k struct{ BedID, UserPrivateKey, HostPublicKeys json.RawMessage }
	var m struct{ Machines json.RawMessage }
	if err := errors.Join(json.Unmarshal(keys, &k), json.Unmarshal(machines, &m)); err != nil {
		return nil, err
	}
	var nodes []map[string]any
	for _, n := range spec.Nodes() {
		nodes = append(nodes, map[string]any{"name": n.Name, "role": n.Role, "cpus": n.CPUs, "memoryMiB": n.Memory / bed.MiB})
	}
	return json.Marshal(map[string]any{
		"driver": spec.Driver, "user": stacks.User, "owner": map[string]any{"bed": spec.Name, "id": k.BedID},
		"userPrivateKey": k.UserPrivateKey, "hostPublicKeys": k.HostPublicKeys, "nodes": nodes, "machines": m.Machines,
	})
}

// unnoted ends the machines in the cloud that an up has launched which was killed before it could note them, for nobody would see them beside those that
// take their place. It tells whether an up was cut short.
func (w *Workspace) unnoted(ctx context.Context, s *session, spec bed.Spec) (cut bool, err error) {
	exported, err := s.stack.Export(ctx)
	if err != nil {
		return false, s.explain(ctx, "read", err)
	}
	cut, id, noted, err := cutShort(exported.Deployment)
	switch {
	case err != nil:
		return cut, fmt.Errorf("the state of stack %s: %w", w.Stack, err)
	case !cut || id == "":
		return cut, nil
	}
	c, problems := openCloud(spec)
	if err := problems.Err(); err != nil {
		return true, err
	}
	return true, c.EndOthers(ctx, provision.Owner{ID: id, State: stacks.MarkedState(spec.Driver, w.OwnerState())}, noted)
}

// cutShort tells whether what a deployment tells of was cut short; if so, whose it is, and the ids of all that it has noted. Without an owner yet there
// are no machines.
func cutShort(deployment json.RawMessage) (cut bool, owner string, ids []string, err error) {
	var d apitype.DeploymentV3
	if err := json.Unmarshal(deployment, &d); err != nil {
		return false, "", nil, err
	}
	for _, r := range d.Resources {
		if ids = append(ids, string(r.ID)); r.Type == "bedfellow:index:Keys" {
			owner, _ = r.Outputs["bedId"].(string)
		}
	}
	return len(d.PendingOperations) > 0, owner, ids, nil
}

// clearCloud removes what bears this stack's mark in its cloud.
func (w *Workspace) clearCloud(ctx context.Context, spec bed.Spec) error {
	c, problems := openCloud(spec)
	if err := problems.Err(); err != nil {
		return fmt.Errorf("look for it in the cloud: %w", err)
	}
	return provider.ClearState(ctx, c, stacks.MarkedState(spec.Driver, w.OwnerState()))
}
