package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/blang/semver"
	"github.com/pulumi/pulumi/sdk/v3/go/auto"
	"github.com/pulumi/pulumi/sdk/v3/go/auto/events"
	"github.com/pulumi/pulumi/sdk/v3/go/auto/optdestroy"
	"github.com/pulumi/pulumi/sdk/v3/go/auto/optpreview"
	"github.com/pulumi/pulumi/sdk/v3/go/auto/optrefresh"
	"github.com/pulumi/pulumi/sdk/v3/go/auto/optup"
	"github.com/pulumi/pulumi/sdk/v3/go/common/apitype"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/provision/clouds"
	"github.com/bedfellow/bedfellow/provision/drivers"
	"github.com/bedfellow/bedfellow/provision/provider"
	"github.com/bedfellow/bedfellow/stacks"
)

// PulumiVersion is the CLI this is built for; an installed one must be as new.
const PulumiVersion = "3.259.0"

// ErrNoBed says that the stack has no bed.
var ErrNoBed = errors.New("there is no bed")

// Standing is a bed that stands, with the key that opens it.
type Standing struct {
	Inventory  bed.Inventory
	PrivateKey []byte
	// Changes counts the resources by what the engine did to them: same, create, update, delete, replace.
	Changes map[string]int
}

// Changed is how many resources the engine touched.
func (s Standing) Changed() int {
	n := 0
	for kind, count := range s.Changes {
		if kind != "same" {
			n += count
		}
	}
	return n
}

// Up makes the bed, or brings it to its configuration. What -c set is kept.
func (w *Workspace) Up(ctx context.Context) (Standing, error) {
	if _, err := w.Check(ctx); err != nil {
		return Standing{}, err
	}
	unlock, err := w.lock(ctx, "up")
	if err != nil {
		return Standing{}, err
	}
	defer unlock()
	if err := w.writeConfig(w.configFile(), true); err != nil {
		return Standing{}, err
	}
	s, err := w.open(ctx)
	if err != nil {
		return Standing{}, err
	}
	defer s.close()
	cut := false
	if spec, _ := w.Spec(); clouds.Is(spec.Driver) {
		if cut, err = w.unnoted(ctx, s, spec); err != nil {
			return Standing{}, fmt.Errorf("end what an up that was cut short has launched, unless it goes on: %w", err)
		}
	}
	after := w.drain(ctx, s)
	result, err := s.stack.Up(ctx, optup.Refresh(), optup.EventStreams(s.events), optup.Color("never"), optup.SuppressOutputs(), optup.ShowSecrets(false))
	if err != nil {
		after(nil)
		if err = s.explain(ctx, "up", err); cut && ctx.Err() == nil {
			err = fmt.Errorf("%w\nAn up before this one was cut short. If something of that name is there already, that one has made it and not noted it: `bed destroy -s %s` removes it", err, w.Stack)
		}
		return Standing{}, err
	}
	standing, err := w.parse(result.Outputs)
	if err == nil {
		after(&standing)
	}
	standing.Changes = s.changes(result.Summary.ResourceChanges)
	return standing, errors.Join(err, w.keepKey(standing))
}

// Preview tells what Up would do, by kind of change, and does nothing. What -c set holds for this call alone.
func (w *Workspace) Preview(ctx context.Context) (map[string]int, error) {
	if _, err := w.Check(ctx); err != nil {
		return nil, err
	}
	unlock, err := w.lock(ctx, "preview")
	if err != nil {
		return nil, err
	}
	defer unlock()
	fresh := !exists(w.configFile())
	if fresh {
		if err := w.writeConfig(w.configFile(), false); err != nil {
			return nil, err
		}
	}
	s, err := w.open(ctx)
	if err != nil {
		return nil, err
	}
	defer s.close()
	once := filepath.Join(w.stackDir(), "Pulumi."+w.Stack+".yaml") // beside the kept one, whose salt it needs
	if err := w.writeConfig(once, true); err != nil {
		return nil, err
	}
	defer os.Remove(once)
	result, err := s.stack.Preview(ctx, optpreview.ConfigFile(once), optpreview.EventStreams(s.events), optpreview.Color("never"))
	if err != nil {
		err = s.explain(ctx, "preview", err)
	}
	if fresh { // as if nobody had asked
		err = errors.Join(err, w.discard(context.WithoutCancel(ctx), s), w.forget())
	}
	if err != nil {
		return nil, err
	}
	changes := map[string]int{}
	for kind, n := range result.ChangeSummary {
		changes[string(kind)] = n
	}
	return changes, nil
}

// Refresh looks at the machines and records what it finds. The result counts what differs from what was recorded.
func (w *Workspace) Refresh(ctx context.Context) (map[string]int, error) {
	s, unlock, err := w.openExisting(ctx, "refresh")
	if err != nil {
		return nil, err
	}
	defer unlock()
	defer s.close()
	result, err := s.stack.Refresh(ctx, optrefresh.EventStreams(s.events), optrefresh.Color("never"))
	if err != nil {
		return nil, s.explain(ctx, "refresh", err)
	}
	s.heard()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range s.gone { // Pulumi's own providers say nothing of what is theirs
		progress.Note(ctx, "%s is gone; `bed up -s %s` makes another", name, w.Stack)
	}
	return s.changes(result.Summary.ResourceChanges), nil
}

// Destroy removes the bed: first by the engine, which knows what it made, then by the owner's mark, which finds what the engine
// was killed over, under whatever name and driver. It ends with nothing left of the stack here or on the host; the images stay.
// The configuration may be wrong by now. It goes last, so that a destroy that was killed can be given again.
func (w *Workspace) Destroy(ctx context.Context) error {
	unlock, err := w.lock(ctx, "destroy")
	if err != nil {
		return err
	}
	defer unlock()
	var s *session
	if exists(w.configFile()) {
		if s, err = w.open(ctx); err != nil {
			return err
		}
		defer s.close()
		if _, err := s.stack.Destroy(ctx, optdestroy.EventStreams(s.events), optdestroy.Color("never")); err != nil {
			err = s.explain(ctx, "destroy", err)
			return w.orSweep(ctx, err)
		}
	}
	settings := w.driverSettings()
	of, _ := bed.Parse(w.Stack, w.values, stacks.Known())
	if err := drivers.CheckSettings(of.Driver, of.Settings).Err(); err != nil { // an engine that cannot be asked may have much of this stack's
		return fmt.Errorf("remove what is left of stack %s: %w", w.Stack, err)
	}
	for _, name := range drivers.Reachable(settings) {
		if name == "ovirt" && of.Driver != name && len(settings.Ovirt) == 0 { // the environment's engine is none of this stack's
			continue
		}
		d, err := drivers.Open(name, settings)
		if err != nil {
			return err
		}
		if err := provider.ClearState(ctx, d, stacks.MarkedState(name, w.OwnerState())); err != nil {
			return fmt.Errorf("remove what is left of stack %s: %w", w.Stack, err)
		}
	}
	if clouds.Is(of.Driver) {
		if err := w.clearCloud(ctx, of); err != nil {
			return fmt.Errorf("remove what is left of stack %s: %w", w.Stack, err)
		}
	}
	if s != nil {
		if err := w.discard(ctx, s); err != nil {
			return err
		}
	}
	return w.forget()
}

// driverSettings are those of all drivers, as the configuration has them now.
func (w *Workspace) driverSettings() drivers.Settings {
	spec, _ := bed.Parse(w.Stack, w.values, stacks.Known())
	return drivers.Settings{SimJournal: w.stackDir("sim.journal"), Ovirt: spec.Settings}
}

// discard removes the stack, its history included, from the state.
func (w *Workspace) discard(ctx context.Context, s *session) error {
	if err := s.stack.Workspace().RemoveStack(ctx, w.Stack); err != nil {
		return fmt.Errorf("remove stack %s from the state %s: %w", w.Stack, w.StateURL(), err)
	}
	return os.RemoveAll(w.configFile())
}

// Standing reads the bed from the state, as the last up left it.
func (w *Workspace) Standing(ctx context.Context) (Standing, error) {
	if !exists(w.configFile()) {
		return Standing{}, w.noBed()
	}
	s, err := w.openSession(ctx, false)
	if err != nil {
		return Standing{}, err
	}
	outputs, err := s.stack.Outputs(ctx)
	if err != nil {
		return Standing{}, s.explain(ctx, "read", err)
	}
	if _, ok := outputs["inventory"]; !ok {
		return w.halfMade(ctx, s)
	}
	standing, err := w.parse(outputs)
	return standing, errors.Join(err, w.keepKey(standing))
}

// halfMade reads a bed whose first up failed after its machines were made, so that a person can enter them and look.
func (w *Workspace) halfMade(ctx context.Context, s *session) (Standing, error) {
	exported, err := s.stack.Export(ctx)
	if err != nil {
		return Standing{}, s.explain(ctx, "read", err)
	}
	var deployment struct {
		Resources []struct {
			Type    string
			Outputs json.RawMessage
		}
	}
	if err := json.Unmarshal(exported.Deployment, &deployment); err != nil {
		return Standing{}, fmt.Errorf("the state of stack %s: %w", w.Stack, err)
	}
	var keys json.RawMessage
	for _, r := range deployment.Resources { // what is made of something comes after it
		outputs := r.Outputs
		switch r.Type {
		case "bedfellow:index:Keys":
			keys = r.Outputs
			continue
		case "bedfellow:index:Pool":
		case "bedfellow:index:AwsMachines", "bedfellow:index:OpenStackMachines":
			spec, _ := stacks.Parse(w.Stack, w.values)
			if outputs, err = asPool(spec, keys, r.Outputs); err != nil {
				return Standing{}, fmt.Errorf("the state of stack %s: %w", w.Stack, err)
			}
		default:
			continue
		}
		inventory, key, err := provider.Standing(outputs)
		if err != nil {
			return Standing{}, fmt.Errorf("the machines in the state of stack %s: %w; `bed up -s %s` records them anew", w.Stack, err, w.Stack)
		}
		found := Standing{Inventory: inventory, PrivateKey: key}
		return found, w.keepKey(found)
	}
	return Standing{}, w.noBed()
}

func (w *Workspace) noBed() error {
	return fmt.Errorf("%w", bed.Problems{{Key: "stack", Value: w.Stack, Reason: ErrNoBed.Error(), Remedy: "`bed up -s " + w.Stack + "` makes it", Host: true}})
}

// parse reads the stack's outputs.
func (w *Workspace) parse(outputs auto.OutputMap) (s Standing, err error) {
	text, _ := outputs["inventory"].Value.(string)
	if s.Inventory, err = bed.ParseInventory([]byte(text)); err != nil {
		return s, fmt.Errorf("the output %w; the state of stack %s is damaged or another version's: `bed up -s %s` writes it anew", err, w.Stack, w.Stack)
	}
	key, _ := outputs["privateKey"].Value.(string)
	s.PrivateKey = []byte(key)
	return s, nil
}

// KeyFile is the private key of the bed's user, for ssh.
func (w *Workspace) KeyFile() string { return w.stackDir("id_ed25519") }

func (w *Workspace) keepKey(s Standing) error {
	if len(s.PrivateKey) == 0 {
		return nil
	}
	return writeFile(w.KeyFile(), s.PrivateKey)
}

func (w *Workspace) openExisting(ctx context.Context, command string) (*session, func(), error) {
	if !exists(w.configFile()) {
		return nil, nil, w.noBed()
	}
	unlock, err := w.lock(ctx, command)
	if err != nil {
		return nil, nil, err
	}
	s, err := w.open(ctx)
	if err != nil {
		unlock()
		return nil, nil, err
	}
	return s, unlock, nil
}

// session is the stack opened in the engine.
type session struct {
	w      *Workspace
	stack  auto.Stack
	events chan events.EngineEvent
	mu     sync.Mutex
	errors []string // guarded by mu
	gone   []string // guarded by mu
	done   chan struct{}
	stop   func()
}

// open prepares the folder, opens the stack and begins to show progress.
func (w *Workspace) open(ctx context.Context) (*session, error) {
	if err := w.prepare(); err != nil {
		return nil, err
	}
	s, err := w.openSession(ctx, true)
	if err != nil {
		return nil, err
	}
	s.stop = follow(w.stackDir("events.ndjson"), progress.SinkOf(ctx))
	go s.listen()
	return s, nil
}

// openSession opens the stack, to work on it or to look at it only: then it is not made, and the processes do not bear the mark,
// for they hold no lock and are nobody's leftovers.
func (w *Workspace) openSession(ctx context.Context, work bool) (*session, error) {
	env, err := w.environment()
	if err != nil {
		return nil, err
	}
	cli, err := w.cli()
	if err != nil {
		return nil, err
	}
	open := auto.UpsertStackInlineSource
	if !work {
		open = auto.SelectStackInlineSource
		delete(env, markEnv)
		delete(env, "TMPDIR")
	}
	stack, err := open(ctx, w.Stack, stacks.Namespace, stacks.ProgramIn(w.StateURL()), auto.WorkDir(w.Root), auto.EnvVars(env), auto.Pulumi(cli))
	s := &session{w: w, stack: stack, events: make(chan events.EngineEvent, 64), done: make(chan struct{}), stop: func() {}}
	if err != nil {
		if !work && auto.IsSelectStack404Error(err) {
			return nil, w.noBed()
		}
		return nil, s.explain(ctx, "open", err)
	}
	return s, nil
}

func (s *session) close() { s.stop(); _ = os.RemoveAll(s.w.tmp()) }

// findCLI takes the Pulumi CLI beside this command, as `make tools` builds it, or else one that is installed and new enough.
func findCLI() (auto.PulumiCommand, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	options := &auto.PulumiCommandOptions{Version: semver.MustParse(PulumiVersion)}
	if bin := filepath.Dir(self); exists(filepath.Join(bin, "pulumi")) && filepath.Base(bin) == "bin" {
		options.Root = filepath.Dir(bin)
	}
	cli, err := auto.NewPulumiCommand(options)
	if err != nil {
		return nil, bed.Problems{{Reason: "no Pulumi CLI of version " + PulumiVersion + " or newer: " + err.Error(), Remedy: "`make tools` builds one", Host: true}}
	}
	return cli, nil
}

// heard waits until the engine has said all: it closes its stream at the end.
func (s *session) heard() {
	select {
	case <-s.done:
	case <-time.After(2 * time.Second):
	}
}

// listen collects the engine's error messages, and what it has found to be gone.
func (s *session) listen() {
	defer close(s.done)
	for e := range s.events {
		if d := e.DiagnosticEvent; d != nil && d.Severity == "error" {
			if text := strings.TrimSpace(colours.ReplaceAllString(d.Message, "")); text != "" && text != "update failed" {
				s.mu.Lock()
				s.errors = append(s.errors, text)
				s.mu.Unlock()
			}
		}
		if o := e.ResOutputsEvent; o != nil && o.Metadata.Op == apitype.OpDelete {
			urn := resource.URN(o.Metadata.URN)
			s.mu.Lock()
			s.gone = append(s.gone, fmt.Sprintf("%s (%s)", urn.Name(), urn.Type().Name()))
			s.mu.Unlock()
		}
	}
}

var colours = regexp.MustCompile(`<\{%[^%]*%\}>`)

// explain turns the engine's error into what a person can act on.
func (s *session) explain(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s of %s was interrupted: %w; `bed up -s %s` finishes the bed, `bed destroy -s %s` removes it", what, s.w.Stack, context.Cause(ctx), s.w.Stack, s.w.Stack)
	}
	if s.stack.Name() != "" && what != "read" {
		s.heard()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stack.Name() == "" || len(s.errors) == 0 {
		text := err.Error()
		if strings.Contains(text, "incorrect passphrase") {
			return s.w.wrongPassphrase()
		}
		return fmt.Errorf("%s of stack %s: %w", what, s.w.Stack, err)
	}
	return fmt.Errorf("%s of stack %s failed:\n%s", what, s.w.Stack, strings.Join(s.errors, "\n"))
}

func (s *session) changes(summary *map[string]int) map[string]int {
	if summary == nil {
		return map[string]int{}
	}
	return *summary
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
