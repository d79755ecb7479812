package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pulumi/pulumi/sdk/v3/go/auto/optrefresh"
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
	if cut, _, _, err = cutShort(exported.Deployment); err != nil || !cut {
		return false, err
	}
	// An up that goes on, from another host or by Pulumi's own command, looks the same: it has Pulumi's lock, which this wants.
	if _, err := s.stack.Refresh(ctx, optrefresh.Color("never")); err != nil {
		return true, fmt.Errorf("refresh of stack %s: %w", w.Stack, err)
	}
	if exported, err = s.stack.Export(ctx); err != nil {
		return true, s.explain(ctx, "read", err)
	}
	c, problems := openCloud(spec)
	if err := problems.Err(); err != nil {
		return true, err
	}
	if err := endUnnoted(ctx, c, exported.Deployment, stacks.MarkedState(spec.Driver, w.OwnerState())); err != nil {
		return true, err
	}
	_, err = s.stack.Refresh(ctx, optrefresh.ClearPendingCreates(), optrefresh.Color("never")) // or every up from now on would be one after such a one
	return true, err
}

// ender ends the machines of an owner that have none of those ids.
type ender interface {
	EndOthers(ctx context.Context, owner provision.Owner, ids []string) error
}

// endUnnoted has a cloud do so with what a deployment has not noted.
func endUnnoted(ctx context.Context, c ender, deployment json.RawMessage, state string) error {
	_, id, noted, err := cutShort(deployment)
	if err != nil || id == "" { // then there are no machines either
		return err
	}
	return c.EndOthers(ctx, provision.Owner{ID: id, State: state}, noted)
}

// cutShort tells whether something was being made that a deployment has not noted yet; whose it is, if anybody's; and the ids of all that is noted.
func cutShort(deployment json.RawMessage) (cut bool, owner string, ids []string, err error) {
	var d apitype.DeploymentV3
	if err := json.Unmarshal(deployment, &d); err != nil {
		return false, "", nil, fmt.Errorf("the stack's state: %w", err)
	}
	for _, r := range d.Resources {
		if ids = append(ids, string(r.ID)); r.Type == "bedfellow:index:Keys" {
			owner, _ = r.Outputs["bedId"].(string)
		}
	}
	cut = slices.ContainsFunc(d.PendingOperations, func(o apitype.OperationV2) bool { return o.Type == apitype.OperationTypeCreating })
	return cut, owner, ids, nil
}

// orSweep adds how to remove a bed in a cloud, which costs until it is gone, where the engine cannot: unless somebody has it in hand.
func (w *Workspace) orSweep(ctx context.Context, err error) error {
	spec, _ := bed.Parse(w.Stack, w.values, stacks.Known())
	if !clouds.Is(spec.Driver) || ctx.Err() != nil || strings.Contains(err.Error(), "currently locked") {
		return err
	}
	where := ""
	if s, problems := clouds.ReadAWS(spec.Settings); spec.Driver == "aws" && len(problems) == 0 {
		where = "AWS_REGION=" + s.Region + " "
	}
	return fmt.Errorf("%w\n`%sbed sweep --delete --owner %s` removes all that bears the bed's mark in the cloud, without Pulumi", err, where, spec.Name)
}

// clearCloud removes what bears this stack's mark in its cloud.
func (w *Workspace) clearCloud(ctx context.Context, spec bed.Spec) error {
	c, problems := openCloud(spec)
	if err := problems.Err(); err != nil {
		return fmt.Errorf("look for it in the cloud: %w", err)
	}
	return provider.ClearState(ctx, c, stacks.MarkedState(spec.Driver, w.OwnerState()))
}
