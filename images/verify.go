package images

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/playbooks"
)

// ErrCannotRebake says that an image cannot be baked again here: this version of Bedfellow would bake another, or the store
// lacks something that the image was made from.
var ErrCannotRebake = errors.New("cannot be baked again")

// maxDifferences is how many differing paths an error names.
const maxDifferences = 5

// Verify tells whether an image is what was baked. It reads every byte and names the paths that differ. Quick, it looks at types,
// owners, sizes and times alone, in a fraction of a second: what an accident changes it sees, what somebody hides it may not.
func (s *Store) Verify(ctx context.Context, digest string, quick bool) error {
	img, err := s.find(ctx, digest)
	if err != nil {
		return err
	}
	damaged := func(format string, args ...any) error {
		return fmt.Errorf("image %s (%s) is damaged: %s; `bed image remove %s` removes it, and the next bake makes it anew",
			img.Digest, img.Definition, fmt.Sprintf(format, args...), img.Digest)
	}
	want, err := s.entries(img)
	if err != nil {
		return damaged("its list of files %v", err)
	}
	if img.Format == bed.VM {
		for _, name := range sortedKeys(img.Manifest.Disk) {
			if how := img.Manifest.Disk[name].differs(filepath.Join(img.Path, name), quick); how != "" {
				return damaged("%s %s", filepath.Join(img.Path, name), how)
			}
		}
		return nil
	}
	have, err := scan(ctx, img.Path, !quick)
	if err != nil {
		return fmt.Errorf("verifying image %s: %w", img.Digest, err)
	}
	if quick {
		for i := range want {
			want[i].Xattrs, want[i].SHA256 = "", ""
		}
	} else {
		withoutTimes(want)
		withoutTimes(have)
	}
	if found := differences(want, have); len(found) > 0 {
		return damaged("%s", first(found, img.Path))
	}
	return nil
}

// differs says how a file is not the one that was baked, if it is not. Quick, it looks at the size alone.
func (f File) differs(path string, quick bool) string {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return "does not read: " + err.Error()
	case info.Size() != f.Bytes:
		return fmt.Sprintf("has %d bytes, not %d", info.Size(), f.Bytes)
	case quick:
		return ""
	}
	if sum, err := fileSum(path); err != nil {
		return "does not read: " + err.Error()
	} else if sum != f.SHA256 {
		return "differs in content"
	}
	return ""
}

// Rebake bakes an image again from what the store kept of its bake and nothing else, without a network, and says what differs.
// What roles build is built again too. The image and the nodes on it are left alone; of the second bake nothing stays. It must be
// run by root and takes about as long as a bake whose packages are all there. Where it cannot be tried it is ErrCannotRebake.
func (s *Store) Rebake(ctx context.Context, digest string) error {
	img, err := s.find(ctx, digest)
	if err != nil {
		return err
	}
	step := progress.Start(ctx, "bake %s again, without a network", img.Definition)
	err = s.rebake(ctx, step, img)
	if err != nil {
		err = fmt.Errorf("image %s (%s with %s): %w", img.Digest, img.Definition, strings.Join(img.Roles, ", "), err)
	}
	step.EndWith("the same", err)
	return err
}

func (s *Store) rebake(ctx context.Context, step *progress.Step, img Image) (err error) {
	kept, err := s.lockWith(ctx, keptLock, syscall.LOCK_SH, func() { step.Update("waiting for a prune of the store") })
	if err != nil {
		return err
	}
	defer kept.Close()
	name := "verify-" + img.Key
	lock, err := s.lockWith(ctx, name, syscall.LOCK_EX, func() { step.Update("waiting for another who verifies the image") })
	if err != nil {
		return err
	}
	defer lock.Close()
	b := &bakery{store: s, recipe: recipe{def: img.Manifest.Definition, format: img.Format, roles: img.Roles}, dir: s.bakeDir(name), lock: lock, step: step,
		replay: &img.Manifest, m: Manifest{Timings: map[string]float64{}}}
	if f := img.Manifest.Flux; f != nil {
		b.art = fluxArtifact{Source: f.Source, Digest: f.Digest}
	}
	if k := img.Manifest.Kubernetes; k != nil {
		b.kubernetesSums = k.Module
	}
	if err := b.replayable(); err != nil {
		return err
	}
	want, err := s.entries(img)
	if err != nil {
		return fmt.Errorf("its list of files %w", err)
	}
	if err := s.Sweep(ctx); err != nil { // what a killed one left of this is removed too
		return err
	}
	if err := b.begin(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = s.explainSpace(err)
		}
		err = errors.Join(err, removeTree(b.dir))
	}()
	if err := s.bake(ctx, b); err != nil {
		return fmt.Errorf("baking it again: %w", err)
	}
	have, err := b.digest(ctx)
	if err != nil {
		return err
	}
	if b.m.Digest == img.Digest {
		return nil
	}
	withoutTimes(want)
	withoutTimes(have)
	hint := ""
	for _, tool := range sortedKeys(img.Manifest.Tools) {
		if was, is := img.Manifest.Tools[tool], b.m.Tools[tool]; was != is {
			hint += fmt.Sprintf("; it was baked with %q, and this host has %q", was, is)
		}
	}
	return fmt.Errorf("baked again from the same, it is another, %s: %s%s", b.m.Digest, first(differences(want, have), ""), hint)
}

// replayable checks that the bake can be done again, and that all it took from outside is there and unchanged.
func (b *bakery) replayable() error {
	m := b.replay
	key, inputs, err := b.key(playbooks.FS)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCannotRebake, err)
	}
	if key != m.Key {
		changed := maps.Clone(inputs)
		maps.DeleteFunc(changed, func(path, sum string) bool { return m.Inputs[path] == sum })
		for path := range m.Inputs {
			if _, ok := inputs[path]; !ok {
				changed[path] = ""
			}
		}
		return fmt.Errorf("%w: this version of Bedfellow bakes it from other files (%s); verify it with the version that baked it, or `bed image remove` it",
			ErrCannotRebake, strings.Join(sortedKeys(changed), ", "))
	}
	for _, k := range m.kept() {
		if k.SHA256 == "" {
			return fmt.Errorf("%w: it was baked by a version of Bedfellow that did not keep package lists; `bed image remove` it, and the next bake keeps them", ErrCannotRebake)
		}
		sum, err := fileSum(b.keptPath(k))
		if err != nil {
			return fmt.Errorf("%w: a file that it was made from is gone: %w", ErrCannotRebake, err)
		}
		if sum != k.SHA256 {
			return fmt.Errorf("%w: %s, which it was made from, was changed", ErrCannotRebake, b.keptPath(k))
		}
	}
	return nil
}

// entries reads the list of an image's paths, which its digest vouches for.
func (s *Store) entries(img Image) ([]entry, error) {
	path := filepath.Join(s.dir, img.Key, "files")
	list, err := readEntries(path)
	if err != nil {
		return nil, fmt.Errorf("does not read: %w", err)
	}
	if len(list) != img.Manifest.Files || digestTree(list) != img.Digest {
		return nil, fmt.Errorf("was changed: %s", path)
	}
	return list, nil
}

func withoutTimes(list []entry) {
	for i := range list {
		list[i].MTime = 0
	}
}

// difference is a path that is not as it was, and how.
type difference struct{ path, how string }

// differences compares two sorted lists.
func differences(want, have []entry) []difference {
	var found []difference
	for len(want) > 0 || len(have) > 0 {
		switch {
		case len(have) == 0 || len(want) > 0 && want[0].Path < have[0].Path:
			found, want = append(found, difference{want[0].Path, "is missing"}), want[1:]
		case len(want) == 0 || have[0].Path < want[0].Path:
			found, have = append(found, difference{have[0].Path, "was added"}), have[1:]
		default:
			if want[0] != have[0] {
				found = append(found, difference{have[0].Path, "differs in " + how(want[0], have[0])})
			}
			want, have = want[1:], have[1:]
		}
	}
	return found
}

// how names the facts in which two entries differ.
func how(a, b entry) string {
	var facts []string
	for _, f := range []struct {
		name    string
		differs bool
	}{
		{"mode", a.Mode != b.Mode}, {"owner", a.UID != b.UID || a.GID != b.GID}, {"size", a.Size != b.Size}, {"content", a.SHA256 != b.SHA256},
		{"target", a.Link != b.Link}, {"attributes", a.Xattrs != b.Xattrs}, {"device", a.Device != b.Device}, {"time", a.MTime != b.MTime},
	} {
		if f.differs {
			facts = append(facts, f.name)
		}
	}
	return strings.Join(facts, ", ")
}

// first words the first of the differences, with their paths under dir.
func first(found []difference, dir string) string {
	var words []string
	for _, d := range found[:min(len(found), maxDifferences)] {
		words = append(words, filepath.Join(dir, d.path)+" "+d.how)
	}
	if more := len(found) - len(words); more > 0 {
		words = append(words, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(words, "; ")
}
