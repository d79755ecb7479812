package images

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/bedfellow/bedfellow/playbooks"
)

// artifactDir is where a role's build installs, within the tree it is built in.
const artifactDir = "/artifact"

// sourceDir is where a role's build finds its source package, within that tree.
const sourceDir = "/source"

// artifact returns what a role builds, and whether it builds anything. It is made once: under the key of the role's build
// files, the base system, the exact packages it is built with and the exact source package. A replay makes it anew.
func (b *bakery) artifact(ctx context.Context, role string) (Artifact, bool, error) {
	data, err := fs.ReadFile(playbooks.FS, "roles/"+role+"/vars/build.yml")
	if err != nil {
		return Artifact{}, false, nil
	}
	vars := map[string]any{}
	if err := yaml.Unmarshal(data, &vars); err != nil {
		return Artifact{}, false, fmt.Errorf("roles/%s/vars/build.yml: %w", role, err)
	}
	files, err := roleFiles(playbooks.FS, []string{role}, "build")
	if err != nil {
		return Artifact{}, false, err
	}
	name, _ := vars[role+"_source"].(string)
	debs, err := b.cache("resolve")
	if err != nil {
		return Artifact{}, false, err
	}
	// What would be installed on top of what is, and which source is the newest.
	resolved, err := b.run(ctx, b.contained(enterTree, append([]string{
		filepath.Join(b.dir, "base"), debs, "chroot", filepath.Join(b.dir, "base"), "/bin/sh", "-euc",
		`dpkg-query -W -f '${Package} ${Version} ${Architecture}\n'; source=$1; shift; apt-get install -s "$@" | sed -n '/^Inst /p'
		echo "Source: $(apt-cache showsrc --only-source "$source" | sed -n 's/^Version: //p' | sort -V | tail -n 1)"`, "sh", name,
	}, words(vars[role+"_build_packages"])...)...))
	if err != nil {
		return Artifact{}, false, err
	}
	_, version, _ := strings.Cut(resolved, "\nSource: ")
	a := Artifact{Role: role, Key: digestOf("artifact", bakeVersion, b.def, role, files, resolved), Source: name + " " + strings.TrimSpace(version)}
	if b.replay != nil {
		return a, true, b.build(ctx, &a)
	}
	lock, err := b.store.lock(ctx, "artifact-"+a.Key)
	if err != nil {
		return Artifact{}, false, err
	}
	defer lock.Close()
	if kept, ok := b.store.keptArtifact(a.Key); ok {
		return kept, true, nil
	}
	return a, true, b.build(ctx, &a)
}

// keptArtifact finds an artifact that is whole.
func (s *Store) keptArtifact(key string) (Artifact, bool) {
	var a Artifact
	data, err := os.ReadFile(s.artifactPath(key) + ".json")
	if err != nil || json.Unmarshal(data, &a) != nil || a.Key != key || len(a.Packages) == 0 && a.Role != kubernetesRole { // none: of a version that kept no sources
		return a, false
	}
	sum, err := fileSum(s.artifactPath(key))
	return a, err == nil && sum == a.SHA256
}

func (s *Store) artifactPath(key string) string { return filepath.Join(s.dir, "artifacts", key+".tar") }

// artifactPath is where this bake finds an artifact. What a replay builds stays in its own directory.
func (b *bakery) artifactPath(key string) string {
	if b.replay != nil {
		return filepath.Join(b.dir, key+".tar")
	}
	return b.store.artifactPath(key)
}

// build builds an artifact in a copy of the base system that is thrown away, so that no compiler gets into an image.
func (b *bakery) build(ctx context.Context, a *Artifact) error {
	tree := filepath.Join(b.dir, "build-"+a.Role)
	if _, err := b.run(ctx, b.contained(`cp -a --reflink=auto "$1" "$2"`, filepath.Join(b.dir, "base"), tree)); err != nil {
		return err
	}
	if err := b.sources(ctx, tree, a); err != nil {
		return err
	}
	stop := b.follow(ctx, "build "+a.Role, filepath.Join(tree, artifactDir+".progress"))
	err := b.playbook(ctx, "build", tree, "build "+a.Role, []string{a.Role}, map[string]any{
		"bed_source_dir": sourceDir, "bed_artifact_dir": artifactDir,
	})
	stop()
	if err != nil {
		return err
	}
	if a.Packages, _, err = b.packages(ctx, tree, "base", "build "+a.Role); err != nil {
		return err
	}
	if err := b.keepArtifact(ctx, a, filepath.Join(tree, artifactDir)); err != nil {
		return err
	}
	return removeTree(tree)
}

// keepArtifact puts what was built in a directory under the artifact's key.
func (b *bakery) keepArtifact(ctx context.Context, a *Artifact, dir string) error {
	fresh := filepath.Join(b.dir, a.Key+".tar")
	if _, err := b.run(ctx, b.contained(`exec tar -C "$1" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu -cf "$2" .`,
		dir, fresh)); err != nil {
		return err
	}
	sum, err := fileSum(fresh)
	if err != nil {
		return err
	}
	a.SHA256 = sum
	if b.replay != nil { // stays in its own directory
		return nil
	}
	path := b.artifactPath(a.Key)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		return err
	}
	syncFilesystem(b.dir)
	if err := os.Rename(fresh, path); err != nil {
		return err
	}
	// Written last: without it the artifact is not there.
	if err := os.WriteFile(fresh+".json", data, 0o644); err != nil {
		return err
	}
	return os.Rename(fresh+".json", path+".json")
}

// follow reports the last line of a file, which another program writes, every second until stop is called.
func (b *bakery) follow(ctx context.Context, name, path string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for last := ""; ; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
			data, _ := os.ReadFile(path)
			lines := strings.Split(strings.TrimSpace(string(data)), "\n")
			line, _, found := strings.Cut(lines[len(lines)-1], "|")
			if found && line != last {
				b.step.Update("%s: %s", name, line)
				last = line
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

// words are the strings of a YAML list, sorted.
func words(v any) []string {
	list, _ := v.([]any)
	var out []string
	for _, w := range list {
		out = append(out, fmt.Sprint(w))
	}
	slices.Sort(out)
	return out
}
