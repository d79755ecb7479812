// Package engine runs the Pulumi engine on a bed's stack: through the Automation API, with the pinned CLI, on the same program
// and state that `pulumi up` would use.
package engine

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/pulumi/pulumi/sdk/v3/go/auto"
	"gopkg.in/yaml.v3"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision/clouds"
	"github.com/bedfellow/bedfellow/provision/ovirt"
	"github.com/bedfellow/bedfellow/provision/provider"
	"github.com/bedfellow/bedfellow/stacks"
)

// Workspace is one stack in one folder. Everything it writes there is under .bed:
//
//	.bed/config/Pulumi.<stack>.yaml   configuration: the preset, and what -c has set
//	.bed/passphrase                   encrypts secrets in the state and the configuration, unless the environment names another
//	.bed/state                        Pulumi's state, unless PULUMI_BACKEND_URL names another
//	.bed/home                         PULUMI_HOME, unless that is set
//	.bed/stacks/<stack>/              lock, progress and keys of the stack
type Workspace struct {
	Root  string // the folder with Pulumi.yaml
	Stack string

	values map[string]string // configuration in our namespace, -c included
	cli    func() (auto.PulumiCommand, error)
}

// Find returns the nearest folder at or above dir that holds this project's Pulumi.yaml.
func Find(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		var project struct{ Name string }
		data, err := os.ReadFile(filepath.Join(at, "Pulumi.yaml"))
		if err == nil && yaml.Unmarshal(data, &project) == nil && project.Name == stacks.Namespace {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", bed.Problems{{Reason: "neither " + dir + " nor a folder above it is a clone of bedfellow (none has its Pulumi.yaml)", Remedy: "change into the clone, or name it with --dir"}}
		}
	}
}

// Open reads the stack's configuration with the given settings on top, and writes nothing. A stack that was never used starts
// from its preset.
func Open(root, stack string, settings map[string]string) (*Workspace, error) {
	w := &Workspace{Root: root, Stack: stack, cli: sync.OnceValues(findCLI)}
	if err := bed.CheckName(stack); err != nil {
		return nil, bed.Problems{{Key: "stack", Value: stack, Reason: err.Error(), Remedy: "the presets are " + strings.Join(stacks.Presets(), ", ")}}
	}
	if err := w.checkOwnership(); err != nil {
		return nil, err
	}
	document, err := w.document()
	if err != nil {
		return nil, err
	}
	if w.values, err = w.valuesOf(document); err != nil {
		return nil, err
	}
	for key, value := range settings {
		key = strings.TrimPrefix(key, stacks.Namespace+":")
		if key == "flux" && value != "" { // kept, and so of use from another folder too
			value = stacks.FluxOf(value)
		}
		if path, err := filepath.Abs(value); key == "ovirt.caFile" && value != "" && err == nil {
			value = path
		}
		w.values[key] = value
	}
	return w, nil
}

func (w *Workspace) dir(parts ...string) string {
	return filepath.Join(append([]string{w.Root, ".bed"}, parts...)...)
}
func (w *Workspace) stackDir(parts ...string) string {
	return w.dir(append([]string{"stacks", w.Stack}, parts...)...)
}
func (w *Workspace) configFile() string { return w.dir("config", "Pulumi."+w.Stack+".yaml") }

// StateURL is where Pulumi keeps the state.
func (w *Workspace) StateURL() string {
	if url := os.Getenv("PULUMI_BACKEND_URL"); url != "" {
		return stacks.AbsoluteState(url, w.Root)
	}
	return "file://" + w.dir("state")
}

// OwnerState is the state in the mark of this stack's beds.
func (w *Workspace) OwnerState() string { return stacks.OwnerState(w.StateURL(), w.Stack) }

// Knows tells whether the state in a mark is one of a stack in this folder.
func Knows(root, state string) bool {
	configs, _ := filepath.Glob(filepath.Join(root, ".bed", "config", "Pulumi.*.yaml"))
	for _, path := range configs {
		stack := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), "Pulumi."), ".yaml")
		if own := (&Workspace{Root: root, Stack: stack}).OwnerState(); state == own || state == stacks.MarkedState("aws", own) {
			return true
		}
	}
	return false
}

// Mark is what every process that works on this stack bears in its environment.
func (w *Workspace) Mark() string {
	sum := sha256.Sum256([]byte(w.StateURL() + "\n" + w.Stack))
	return hex.EncodeToString(sum[:8])
}

// Spec checks the configuration and returns what it asks for.
func (w *Workspace) Spec() (bed.Spec, error) {
	spec, problems := stacks.Parse(w.Stack, w.values)
	return spec, problems.Err()
}

// checkOwnership refuses a .bed that is not the caller's own folder: a link, or somebody else's, could send keys anywhere.
func (w *Workspace) checkOwnership() error {
	for _, path := range []string{w.dir(), w.dir("config"), w.dir("stacks"), w.stackDir(), w.dir("passphrase"), w.configFile(), w.tmp()} {
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		problem := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			problem = "is a symbolic link, which is not followed"
		} else if owner, ok := info.Sys().(*syscall.Stat_t); ok && int(owner.Uid) != os.Geteuid() {
			problem = fmt.Sprintf("belongs to user %d, not to you", owner.Uid)
		} else if info.Mode().Perm()&0o022 != 0 {
			problem = fmt.Sprintf("may be written by others (mode %v)", info.Mode().Perm())
		}
		if problem != "" {
			return bed.Problems{{Key: ".bed", Value: path, Reason: problem, Remedy: "look at what it is; then remove it, or make it yours alone", Host: true}}
		}
	}
	return nil
}

// document reads the configuration file, or else the preset or the user's own Pulumi.<stack>.yaml.
func (w *Workspace) document() (map[string]any, error) {
	from := w.configFile()
	data, err := os.ReadFile(from)
	if errors.Is(err, fs.ErrNotExist) {
		preset, ok := stacks.Preset(w.Stack)
		own := filepath.Join(w.Root, "Pulumi."+w.Stack+".yaml") // one of the user's, which is read as a preset is and never written
		if data, err = preset, nil; !ok {
			from = own
			data, err = os.ReadFile(own)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil, bed.Problems{{
				Key: "stack", Value: w.Stack, Reason: "there is no preset of that name; there is " + strings.Join(stacks.Presets(), ", "),
				Remedy: "name one of them with -s, or write " + own,
			}}
		}
	}
	if err != nil {
		return nil, err
	}
	document := map[string]any{}
	if err := yaml.Unmarshal(data, &document); err != nil {
		return nil, bed.Problems{{Key: "stack", Value: w.Stack, Reason: fmt.Sprintf("%s is not YAML: %v", from, err), Remedy: "mend it, or remove it to start from the preset again"}}
	}
	return document, nil
}

// valuesOf picks the values in our namespace; structured ones become JSON, as Pulumi hands them on, and encrypted ones what they were.
func (w *Workspace) valuesOf(document map[string]any) (map[string]string, error) {
	values := map[string]string{}
	config, _ := document["config"].(map[string]any)
	for key, value := range config {
		name, ours := strings.CutPrefix(key, stacks.Namespace+":")
		if !ours {
			continue
		}
		switch v := value.(type) {
		case map[string]any, []any:
			if ciphertext := encrypted(v); ciphertext != "" {
				var err error
				if values[name], err = w.decrypt(document, name, ciphertext); err != nil {
					return nil, err
				}
				continue
			}
			data, err := json.Marshal(v)
			if err != nil {
				return nil, fmt.Errorf("%s: key %s: %w", w.configFile(), key, err)
			}
			values[name] = string(data)
		default:
			values[name] = fmt.Sprint(v)
		}
	}
	return values, nil
}

// writeConfig writes the configuration to path, with or without the settings that Open was given. What is secret is encrypted.
func (w *Workspace) writeConfig(path string, settings bool) error {
	document, err := w.document()
	if err != nil {
		return err
	}
	values := w.values
	if !settings {
		values = nil
	}
	before, err := w.valuesOf(document)
	if err != nil {
		return err
	}
	config, _ := document["config"].(map[string]any)
	if config == nil {
		config = map[string]any{}
		document["config"] = config
	}
	for key, value := range values {
		if old, ok := before[key]; ok && old == value {
			continue
		}
		config[stacks.Namespace+":"+key] = value
	}
	if err := w.seal(document, config); err != nil {
		return err
	}
	data, err := yaml.Marshal(document)
	if err != nil {
		return err
	}
	return writeFile(path, data)
}

// writeFile replaces a private file in one step.
func writeFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// environment is what the CLI, and with it the plugin and Ansible, gets on top of ours.
func (w *Workspace) environment() (map[string]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	env := map[string]string{
		"PULUMI_BACKEND_URL":                          w.StateURL(),
		"PULUMI_SKIP_UPDATE_CHECK":                    "true",
		"PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
		"PATH":             filepath.Dir(self) + string(os.PathListSeparator) + os.Getenv("PATH"),
		provider.EventsEnv: w.stackDir("events.ndjson"),
		provider.SimEnv:    w.stackDir("sim.journal"),
		"TMPDIR":           w.tmp(),
		markEnv:            w.Mark(),
	}
	if spec, _ := bed.Parse(w.Stack, w.values, stacks.Known()); spec.Driver == "ovirt" { // also when it says nothing, or Pulumi's word would count
		connection, _ := ovirt.Split(spec.Settings)
		text, err := json.Marshal(connection)
		if err != nil {
			return nil, err
		}
		env[ovirt.ConnectionEnv] = string(text)
	}
	if spec, _ := stacks.Parse(w.Stack, w.values); clouds.Is(spec.Driver) { // their plugins are downloaded, once
		delete(env, "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION")
	}
	if os.Getenv("GOGC") == "" { // the CLI runs six times in an up, and each time collects what its start leaves for a tenth of a second
		env["GOGC"] = "400"
	}
	if os.Getenv("PULUMI_HOME") == "" {
		env["PULUMI_HOME"] = w.dir("home")
	}
	if os.Getenv("PULUMI_CONFIG_PASSPHRASE") == "" && os.Getenv("PULUMI_CONFIG_PASSPHRASE_FILE") == "" {
		env["PULUMI_CONFIG_PASSPHRASE_FILE"] = w.dir("passphrase")
	}
	return env, nil
}

// tmp is where everything that works on the stack puts temporary files, so that they can be removed when it was killed. It is
// short, for sockets lie in it.
func (w *Workspace) tmp() string { return filepath.Join(os.TempDir(), "bedfellow-"+w.Mark()) }

// prepare makes the folders, the passphrase and an empty progress file.
func (w *Workspace) prepare() error {
	for _, dir := range []string{w.dir(), w.dir("config"), w.stackDir(), w.tmp()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if strings.HasPrefix(w.StateURL(), "file://"+w.dir()) {
		if err := os.MkdirAll(w.dir("state"), 0o700); err != nil {
			return err
		}
	}
	err := w.makePassphrase()
	return errors.Join(err, writeFile(w.stackDir("events.ndjson"), nil))
}

// makePassphrase makes it once, whole or not at all, however many commands begin at once.
func (w *Workspace) makePassphrase() error {
	if exists(w.dir("passphrase")) {
		return nil
	}
	f, err := os.CreateTemp(w.dir(), ".passphrase-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(rand.Text() + rand.Text())
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), w.dir("passphrase")); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// forget removes what the stack has under .bed, and .bed itself with the last stack.
func (w *Workspace) forget() error {
	errs := []error{os.RemoveAll(w.tmp()), os.RemoveAll(w.stackDir()), os.RemoveAll(w.configFile())}
	if others, _ := os.ReadDir(w.dir("stacks")); len(others) > 0 {
		return errors.Join(errs...)
	}
	if left, _ := filepath.Glob(w.dir("config", "Pulumi.*.yaml")); len(left) > 0 {
		return errors.Join(errs...)
	}
	if states, _ := filepath.Glob(w.dir("state", ".pulumi", "stacks", "*", "*.json")); len(states) > 0 {
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, os.RemoveAll(w.dir()))...)
}
