package engine

import (
	"context"
	"encoding/json"

	"github.com/pulumi/pulumi/sdk/v3/go/auto/events"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
)

// Lock and WriteConfig are here for the tests.
func Lock(ctx context.Context, w *Workspace, command string) (func(), error) {
	return w.lock(ctx, command)
}

func WriteConfig(w *Workspace, path string) error { return w.writeConfig(path, true) }

func Environment(w *Workspace) (map[string]string, error) { return w.environment() }

func KubernetesProblems(spec bed.Spec, on provision.Info) bed.Problems {
	return kubernetesProblems(spec, on)
}

func Leaving(inv bed.Inventory, spec bed.Spec) []string { return leaving(inv, spec) }

func Evict(ctx context.Context, w *Workspace, s Standing, leaving []string) func(now *Standing) {
	return w.evict(ctx, s, leaving)
}

func AsPool(spec bed.Spec, keys, machines json.RawMessage) (json.RawMessage, error) {
	return asPool(spec, keys, machines)
}

func CutShort(deployment json.RawMessage) bool {
	cut, _, _, err := cutShort(deployment)
	return cut && err == nil
}

// EndUnnoted tells whose machines are to end, but for which.
func EndUnnoted(deployment json.RawMessage, state string) (owner provision.Owner, but []string, err error) {
	var said told
	err = endUnnoted(context.Background(), &said, deployment, state)
	return said.owner, said.but, err
}

// told is a fake of a cloud.
type told struct {
	owner provision.Owner
	but   []string
}

func (f *told) EndOthers(_ context.Context, owner provision.Owner, ids []string) error {
	f.owner, f.but = owner, ids
	return nil
}

// Heard is what a session keeps of what the engine has said.
func Heard(said ...events.EngineEvent) (errors, gone []string) {
	s := &session{events: make(chan events.EngineEvent, len(said)), done: make(chan struct{})}
	for _, e := range said {
		s.events <- e
	}
	close(s.events)
	s.listen()
	return s.errors, s.gone
}
