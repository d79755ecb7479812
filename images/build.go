package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/playbooks"
)

// Errors a caller may want to tell apart. What they wrap says more.
var (
	ErrNotRoot   = errors.New("images are baked by root")
	ErrMissing   = errors.New("what a bake needs is missing")
	ErrNoSpace   = errors.New("no space left")
	ErrNoArchive = errors.New("the package archive does not answer")
)

// needBytes is what a bake of a tree may take at its peak, artifacts and their compilers included.
const needBytes = 3 << 30

// needs is what this one may take. A disk is there as a tree, as a file as large as that, and as an image of it; one with Kubernetes was seen to take
// 10.7 GiB.
func (r recipe) needs() int64 {
	switch vm, kubernetes := r.format == bed.VM, r.kubernetes != ""; {
	case vm && kubernetes:
		return 4 * needBytes
	case vm || kubernetes:
		return 2 * needBytes
	}
	return needBytes
}

// Tool is a program that a bake runs, with the Debian package that has it.
type Tool struct{ Program, Package string }

// tools are those of every bake; diskTools come on top for a disk.
var tools = []Tool{
	{"mmdebstrap", "mmdebstrap"}, {"ansible-playbook", "ansible"}, {"unshare", "util-linux"}, {"mount", "mount"},
	{"chroot", "coreutils"}, {"ip", "iproute2"},
}

// Tools lists what baking an image of a format needs on a host.
func Tools(format bed.ImageFormat) []Tool {
	if format != bed.Tree {
		return slices.Concat(tools, diskTools)
	}
	return slices.Clone(tools)
}

// bakery is one bake under way.
type bakery struct {
	store *Store
	recipe
	dir  string    // of the bake; becomes the image
	lock *lockFile // held by everything the bake starts
	step *progress.Step
	m    Manifest
	// replay holds what an earlier bake was made of. Then this one takes nothing else and has no network; see Rebake.
	replay *Manifest
}

// Build returns the image of a request and bakes it when there is none yet. Of two who ask for the same at once one bakes and
// the other waits for it. It must be run by root. When it fails or is killed, nothing of the bake is left but the packages
// and artifacts that were whole; what a kill leaves on disk goes with the next Build, Sweep or Prune.
func (s *Store) Build(ctx context.Context, req Request) (Image, error) {
	if img, ok, err := s.Get(ctx, req); ok || err != nil {
		return img, err
	}
	if req.Format == bed.Raw {
		req.Format = bed.VM
		img, err := s.Build(ctx, req)
		if err != nil {
			return Image{}, err
		}
		return s.writeRaw(ctx, img)
	}
	r, err := req.resolve()
	if err != nil {
		return Image{}, err
	}
	key, inputs, err := r.key(playbooks.FS)
	if err != nil {
		return Image{}, err
	}
	step := progress.Start(ctx, "bake %s", r.def.Name)
	img, err := s.build(ctx, step, &bakery{store: s, recipe: r, dir: s.bakeDir(key), step: step, m: Manifest{
		Format: 1, Key: key, Definition: r.def, ImageFormat: r.format, Roles: r.roles, Inputs: inputs, Timings: map[string]float64{},
	}})
	if err != nil {
		err = fmt.Errorf("baking %s with %s: %w", r.def.Name, strings.Join(r.roles, ", "), err)
	}
	step.EndWith(fmt.Sprintf("%d packages, %d MiB", len(img.Manifest.Packages), img.Manifest.Bytes>>20), err)
	return img, err
}

func (s *Store) build(ctx context.Context, step *progress.Step, b *bakery) (_ Image, err error) {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return Image{}, fmt.Errorf("making the image store: %w", notRoot(err))
	}
	// Before the key's, as Prune takes them.
	kept, err := s.lockWith(ctx, keptLock, syscall.LOCK_SH, func() { step.Update("waiting for a prune of the store") })
	if err != nil {
		return Image{}, err
	}
	defer kept.Close()
	lock, err := s.lockWith(ctx, b.m.Key, syscall.LOCK_EX, func() { step.Update("waiting for another bake of the same image") })
	if err != nil {
		return Image{}, err
	}
	defer lock.Close()
	if img, err := s.load(b.m.Key); err == nil {
		return img, nil // another made it meanwhile
	}
	b.lock = lock
	if err := s.Sweep(ctx); err != nil {
		return Image{}, err
	}
	if err := b.begin(); err != nil {
		return Image{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(s.explainSpace(err), removeTree(b.dir))
		}
	}()
	away := false
	if s.Elsewhere != nil {
		away, err = b.recipe.elsewhere()
	}
	switch {
	case err != nil:
	case away:
		err = s.bakeElsewhere(ctx, b)
	default:
		if err = s.bake(ctx, b); err == nil {
			err = b.finish(ctx)
		}
	}
	if err != nil {
		return Image{}, err
	}
	return s.load(b.m.Key)
}

// begin makes the bake's directory, empty.
func (b *bakery) begin() error {
	if err := removeTree(b.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return fmt.Errorf("making the bake's directory: %w", err)
	}
	return nil
}

// digest lists the tree and notes its digest.
func (b *bakery) digest(ctx context.Context) ([]entry, error) {
	defer b.stage("digest")()
	entries, err := scan(ctx, filepath.Join(b.dir, "tree"), true)
	if err != nil {
		return nil, err
	}
	b.m.Digest, b.m.Files, b.m.Bytes = digestTree(entries), len(entries), 0
	for _, e := range entries {
		b.m.Bytes += e.Size
	}
	return entries, nil
}

// finish digests the tree, writes what is known of it and puts the image in its place.
func (b *bakery) finish(ctx context.Context) error {
	entries, err := b.digest(ctx)
	if err != nil {
		return err
	}
	if b.format == bed.VM {
		if err := b.disk(ctx); err != nil {
			return err
		}
	}
	b.m.Baked = time.Now().UTC().Truncate(time.Second)
	data, err := json.MarshalIndent(b.m, "", "  ")
	if err != nil {
		return err
	}
	if err := writeEntries(filepath.Join(b.dir, "files"), entries); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(b.dir, "manifest.json"), append(data, '\n'), 0o644); err != nil {
		return err
	}
	keep, err := os.ReadDir(b.dir)
	if err != nil {
		return err
	}
	for _, e := range keep {
		switch e.Name() {
		case string(b.format), "files", "manifest.json":
		default:
			if err := removeTree(filepath.Join(b.dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return b.place()
}

// place puts the image, which is whole in the bake's directory, under its key.
func (b *bakery) place() error {
	// The image must be on disk before its name is: a manifest of a tree that a power cut emptied would pass for an image.
	syncFilesystem(b.dir)
	// An image that does not load was moved to the same key by hand, or damaged: it makes room.
	target := filepath.Join(b.store.dir, b.m.Key)
	if err := removeTree(target); err != nil {
		return err
	}
	if err := os.Chmod(b.dir, 0o755); err != nil { // whatever the umask: drivers need not be root
		return err
	}
	if err := os.Rename(b.dir, target); err != nil {
		return fmt.Errorf("putting the image in its place: %w", err)
	}
	return nil
}

// stage reports a part of the bake and returns what ends it. Parts may overlap.
func (b *bakery) stage(name string) func() {
	start := time.Now()
	b.step.Update("%s", name)
	return func() {
		b.lock.mu.Lock()
		defer b.lock.mu.Unlock()
		b.m.Timings[name] = time.Since(start).Round(time.Millisecond).Seconds()
	}
}

// Sweep removes what killed bakes left. A bake that lives holds its lock, as does everything it started, and is not touched.
func (s *Store) Sweep(ctx context.Context) error { return s.sweep(ctx, removeTree) }

func (s *Store) sweep(ctx context.Context, remove func(dir string) error) error {
	dirs, err := filepath.Glob(filepath.Join(s.dir, "bake", "*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := ctx.Err(); err != nil {
			return err
		}
		lock, err := s.tryLock(filepath.Base(dir), syscall.LOCK_EX)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			continue
		}
		if err != nil {
			return err
		}
		err = remove(dir)
		lock.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) bakeDir(key string) string { return filepath.Join(s.dir, "bake", key) }

// preflight says what is missing before anything is begun.
func (s *Store) preflight(r recipe) error {
	if err := Architecture(r.format); err != nil {
		return err
	}
	var missing, pkgs []string
	for _, t := range Tools(r.format) {
		if _, err := exec.LookPath(t.Program); err != nil {
			missing, pkgs = append(missing, t.Program), append(pkgs, t.Package)
		}
	}
	if _, err := s.keyring(r.def); err != nil { // other distributions do not install it
		if source := r.def.keyringSource(); source == nil || !exists(source.keyring()) {
			missing, pkgs = append(missing, r.def.keyring()), append(pkgs, r.def.Keyring)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: %s; install them: apt-get install %s", ErrMissing, strings.Join(missing, ", "), strings.Join(pkgs, " "))
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: they need mounts and files of many owners; run the command with sudo", ErrNotRoot)
	}
	if free, where := s.free(); free < r.needs() {
		return fmt.Errorf("%w: %s has %d MiB free, and this bake takes up to %d MiB; make room there (`bed image list`, `bed image remove`) or move the store",
			ErrNoSpace, where, free>>20, r.needs()>>20)
	}
	return nil
}

// free is what is free on the store's filesystem, and where that is mounted, as far as df knows. What is reserved there does not
// count: it is not always root's.
func (s *Store) free() (int64, string) {
	where := s.dir
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.dir, &st); err != nil {
		return math.MaxInt64, where
	}
	if out, err := exec.Command("df", "--output=target", s.dir).Output(); err == nil {
		if lines := strings.Fields(string(out)); len(lines) > 0 {
			where = fmt.Sprintf("the filesystem at %s (which holds %s)", lines[len(lines)-1], s.dir)
		}
	}
	return int64(st.Bavail) * int64(st.Bsize), where
}

// explainSpace adds to an error of a full filesystem which one it is. Programs tell of it in text only.
func (s *Store) explainSpace(err error) error {
	if errors.Is(err, ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) && !strings.Contains(strings.ToLower(err.Error()), "no space left on device") {
		return err
	}
	free, where := s.free()
	return fmt.Errorf("%w: %s has %d MiB free; make room there (`bed image list`, `bed image remove`) or move the store: %w", ErrNoSpace, where, free>>20, err)
}

func notRoot(err error) error {
	if errors.Is(err, os.ErrPermission) && os.Geteuid() != 0 {
		return fmt.Errorf("%w; run the command with sudo: %w", ErrNotRoot, err)
	}
	return err
}

// removeTree removes a tree. A process that is just being killed may still write, so it tries a few times.
func removeTree(dir string) error {
	var err error
	for range 20 {
		if err = os.RemoveAll(dir); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("removing %s: %w; see what holds it: findmnt -R %s; fuser -vm %s", dir, err, dir, dir)
}
