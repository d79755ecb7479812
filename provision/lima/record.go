package lima

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
)

// A bed is a LIMA_HOME of its own, so that no bed's networks or keys are another's. What is known of it lies inside, written before
// anything is made, where Lima does not look: it takes no name that begins with an underscore for an instance.
//
//	<root>/<bed>/                    LIMA_HOME
//	<root>/<bed>/_bed/bed.json
//	<root>/<bed>/_bed/<node>.json    the node's record
//	<root>/<bed>/_bed/<node>.new     its instance while it is put together
//	<root>/<bed>/_bed/<node>.log     what the last limactl said of it
//	<root>/<bed>/<node>/             the instance: lima.yaml, disk, logs, pid files, sockets
//	<root>/<bed>/_tmp                for what Lima makes and forgets when it is killed
//	<root>/<bed>/_config, _networks  Lima's
const (
	ownDir  = "_bed"
	tempDir = "_tmp"
)

// bedRecord is what a bed's nodes share.
type bedRecord struct {
	Owner provision.Owner `json:"owner"`
}

// nodeRecord is one node. Ready is written last: a node without it is half made.
type nodeRecord struct {
	Owner         provision.Owner `json:"owner"`
	Index         int             `json:"index"`
	Digest        string          `json:"digest"`
	Frame         string          `json:"frame"` // digest of all but what can be changed in place
	CPUs          int             `json:"cpus"`
	Memory        bed.Size        `json:"memory"`
	Disk          bed.Size        `json:"disk"` // as made; never 0
	BedAddress    string          `json:"bedAddress"`
	HostPublicKey string          `json:"hostPublicKey"`
	Incarnation   string          `json:"incarnation"`
	Expires       time.Time       `json:"expires"`
	Ready         bool            `json:"ready"`
}

func (d *Driver) home(bedName string) string { return filepath.Join(d.root, bedName) }

func instance(home, node string) string { return filepath.Join(home, node) }
func own(home, name string) string      { return filepath.Join(home, ownDir, name) }

func readBed(home string) (bedRecord, error) { return readJSON[bedRecord](own(home, "bed.json")) }

func readNode(home, node string) (nodeRecord, error) {
	return readJSON[nodeRecord](own(home, node+".json"))
}

func writeNode(home, node string, r nodeRecord) error { return writeJSON(own(home, node+".json"), r) }

// beds lists the beds under the root: directories with our records in them, and empty ones, whose maker was killed. A LIMA_HOME that
// somebody put there has instances and no records, and is not ours.
func (d *Driver) beds() []string {
	var names []string
	for _, name := range subdirectories(d.root) {
		home := d.home(name)
		if _, err := os.Stat(filepath.Join(home, ownDir)); err == nil || len(foreign(home)) == 0 {
			names = append(names, name)
		}
	}
	return names
}

// nodes lists a bed's nodes by their records.
func nodes(home string) []string {
	entries, _ := os.ReadDir(filepath.Join(home, ownDir))
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".json"); ok && name != "bed" {
			names = append(names, name)
		}
	}
	return names
}

// foreign lists the instances that are not a node of the bed.
func foreign(home string) []string {
	known := nodes(home)
	return slices.DeleteFunc(subdirectories(home), func(name string) bool { return slices.Contains(known, name) })
}

// subdirectories lists those whose names are a bed's or an instance's.
func subdirectories(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") && !strings.HasPrefix(e.Name(), "_") {
			names = append(names, e.Name())
		}
	}
	return names
}

// homeOf finds the LIMA_HOME that has a node of that name.
func (d *Driver) homeOf(node string) (string, bool) {
	for _, b := range d.beds() {
		if _, err := os.Stat(own(d.home(b), node+".json")); err == nil {
			return d.home(b), true
		}
	}
	return "", false
}

func readJSON[T any](path string) (T, error) {
	var v T
	data, err := os.ReadFile(path)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return v, fmt.Errorf("read %s: %w", path, err)
	}
	return v, nil
}

// writeJSON replaces the file in one step.
func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

const (
	lockPoll    = 20 * time.Millisecond
	lockTimeout = 8 * launchTimeout // as many starts may be before one
)

// lock serialises what must not happen twice at once in a LIMA_HOME: making and removing it, with its key pair, and the beginning of a start, when
// Lima starts the bed's network. The lock is on the directory and ends with its holder. fs.ErrNotExist says that
// there is none.
func lock(ctx context.Context, home string) (unlock func(), err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lockTimeout, fmt.Errorf("it was not done within %s", lockTimeout))
	defer cancel()
	for {
		f, err := os.Open(home)
		if err != nil {
			return nil, err
		}
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		held, errHeld := f.Stat()
		there, errThere := os.Stat(home)
		if err == nil && errHeld == nil && errThere == nil && os.SameFile(held, there) {
			return func() { _ = f.Close() }, nil
		}
		_ = f.Close() // another holds it, or what was locked is no longer the directory
		if err != nil && !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, fmt.Errorf("lock %s: %w", home, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for another command at work in %s: %w", home, context.Cause(ctx))
		case <-time.After(lockPoll):
		}
	}
}

// makeHome makes a bed's LIMA_HOME, which Lima's user may use and nobody else may enter, and locks it.
func (d *Driver) makeHome(ctx context.Context, bedName string, u *account) (unlock func(), err error) {
	home := d.home(bedName)
	for {
		if err := os.MkdirAll(d.root, 0o755); err != nil {
			return nil, err
		}
		if err := os.Mkdir(home, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		unlock, err := lock(ctx, home)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed with the last node just now
		}
		if err != nil {
			return nil, err
		}
		temp := filepath.Join(home, tempDir)
		if err := errors.Join(u.own(home), mkdir(filepath.Join(home, ownDir)), mkdir(temp), u.own(temp), makeKey(home, u)); err != nil {
			unlock()
			return nil, err
		}
		return unlock, nil
	}
}

// limaKey is the key that Lima enters a LIMA_HOME's machines with, as authorized_keys has it; empty where there is none.
func limaKey(home string) string {
	data, _ := os.ReadFile(filepath.Join(home, "_config/user.pub"))
	return strings.TrimSpace(string(data))
}

// makeKey makes that key pair, where Lima would make it at the first start and finds it at the others. Lima goes by the private one's being there.
func makeKey(home string, u *account) error {
	dir := filepath.Join(home, "_config")
	private, public := filepath.Join(dir, "user"), filepath.Join(dir, "user.pub")
	if _, err := os.Stat(private); err == nil {
		return nil
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(key, "lima")
	if err != nil {
		return err
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))) + " lima\n"
	part := private + ".part"
	if err := errors.Join(mkdir(dir), os.WriteFile(public, []byte(line), 0o644), os.WriteFile(part, pem.EncodeToMemory(block), 0o600), u.own(dir, public, part)); err != nil {
		return err
	}
	return os.Rename(part, private)
}

func mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}
