package provider_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	p "github.com/pulumi/pulumi-go-provider"
	"github.com/pulumi/pulumi/sdk/v3/go/property"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/sim"
)

// Whatever is asked for, goes wrong, dies or is never recorded: an update without faults makes state and machines agree.
func TestPoolAgreesInTheEnd(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for round := range 150 {
		s, random := newPlugin(t), rand.New(rand.NewPCG(seed, uint64(round)))
		var state property.Map
		made := false
		said := ""
		bring := func(nodes int, recorded bool) {
			said += fmt.Sprintf(" bring %d recorded %v;", nodes, recorded)
			var after property.Map
			if !made {
				response, err := s.create("Pool", pool(nodes))
				if err != nil && response.PartialState == nil {
					return // nothing for the state to hold
				}
				after = response.Properties
			} else {
				seen, err := s.Read(p.ReadRequest{Urn: urn("Pool"), ID: "x", Properties: state, Inputs: pool(nodes)})
				if err != nil {
					return // a refresh that fails ends the command
				}
				diff, err := s.Diff(p.DiffRequest{Urn: urn("Pool"), ID: "x", State: seen.Properties, Inputs: pool(nodes)})
				require.NoError(t, err)
				after = seen.Properties
				if diff.HasChanges {
					response, err := s.Update(p.UpdateRequest{Urn: urn("Pool"), ID: "x", State: seen.Properties, Inputs: pool(nodes)})
					if err != nil && response.PartialState == nil {
						return
					}
					after = response.Properties
				}
			}
			if recorded { // else the engine was killed before it wrote this down
				state, made = after, true
			}
		}
		nodes := 0
		for range 1 + random.IntN(6) {
			nodes = 1 + random.IntN(6)
			name := fmt.Sprintf("x-%02d", 1+random.IntN(6))
			switch random.IntN(4) {
			case 0:
				_ = s.machines.Kill(name)
			case 1:
				require.NoError(t, s.machines.Inject(name, sim.Fault{
					Op: []string{"create", "read", "delete"}[random.IntN(3)], Times: 1 + random.IntN(2), Fail: true,
				}))
			case 2:
				require.NoError(t, s.machines.Inject(name, sim.Fault{Op: "create", Times: 1, Half: true}))
			}
			bring(nodes, random.IntN(4) > 0)
		}
		for i := range 6 {
			require.NoError(t, s.machines.Inject(fmt.Sprintf("x-%02d", i+1), []sim.Fault{}...))
		}
		for range 9 { // as many ups as there may be faults left, and one
			bring(nodes, true)
		}
		left, err := s.machines.List(t.Context(), "")
		require.NoError(t, err)
		require.Len(t, left, nodes, "round %d:%s", round, said)
		for _, st := range left {
			assert.Equal(t, provision.Running, st.State, "round %d: %s:%s", round, st.Name, said)
		}
		var have []string
		for _, st := range left {
			have = append(have, st.Incarnation)
		}
		assert.Equal(t, have, incarnations(state), "round %d:%s", round, said)
		require.NoError(t, s.Delete(p.DeleteRequest{Urn: urn("Pool"), ID: "x", Properties: state}))
	}
}

// Of a thousand machines ten fail: each is told, the rest are up, and the next update makes those ten.
func TestOnePercentFails(t *testing.T) {
	s := newPlugin(t)
	const nodes = 1000
	bad := map[string]bool{}
	for i := range nodes / 100 {
		name := fmt.Sprintf("x-%02d", i*97+1)
		bad[name] = true
		require.NoError(t, s.machines.Inject(name, sim.Fault{Op: "create", Times: 1, Fail: true}))
	}
	made, err := s.create("Pool", pool(nodes))
	require.Error(t, err)
	require.NotNil(t, made.PartialState)
	assert.Len(t, made.PartialState.Reasons, len(bad))
	left, err := s.machines.List(t.Context(), "x")
	require.NoError(t, err)
	assert.Len(t, left, nodes-len(bad))
	updated, err := s.Update(p.UpdateRequest{Urn: urn("Pool"), ID: made.ID, State: made.Properties, Inputs: pool(nodes)})
	require.NoError(t, err)
	before, after := incarnations(made.Properties), incarnations(updated.Properties)
	for i := range nodes {
		if !bad[fmt.Sprintf("x-%02d", i+1)] {
			assert.Equal(t, before[i], after[i], "machine %d was well and was touched", i+1)
		}
	}
}
