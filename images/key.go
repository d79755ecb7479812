package images

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/bedfellow/bedfellow/pkg/bed"
)

// bakeVersion counts changes of the bake itself that give another image from the same inputs.
const bakeVersion = 3

// key is the key of an image's inputs, and the digest of each file that is one of them.
func (r recipe) key(fsys fs.FS) (string, map[string]string, error) {
	// What it has in it as containers, and what a role builds, is in the image too.
	inputs, err := roleFiles(fsys, slices.Concat(r.roles, containedRoles(r.roles)), "bake")
	if err != nil {
		return "", nil, err
	}
	built, err := roleFiles(fsys, r.roles, "build")
	if err != nil {
		return "", nil, err
	}
	for p, sum := range built {
		inputs[p] = sum
	}
	parts := []any{"image", bakeVersion, runtime.GOARCH, r.def, r.format, r.roles, inputs}
	if r.format == bed.VM {
		parts = append(parts, commandLine)
	}
	if r.art.Digest != "" {
		parts = append(parts, r.art.Digest)
	}
	sums := r.kubernetesSums
	if r.kubernetes != "" {
		if sums, err = kubernetesSums(r.kubernetes); err != nil {
			return "", nil, err
		}
	}
	if sums != nil {
		parts = append(parts, sums)
	}
	return digestOf(parts...), inputs, nil
}

// roleFiles digests the files an entry point of the roles can read; package playbooks says which those are.
func roleFiles(fsys fs.FS, roles []string, entry string) (map[string]string, error) {
	files := map[string]string{}
	add := func(p string) error {
		data, err := fs.ReadFile(fsys, p)
		if err != nil {
			return fmt.Errorf("reading the playbooks: %w", err)
		}
		sum := sha256.Sum256(data)
		files[p] = hex.EncodeToString(sum[:])
		return nil
	}
	if err := add(entry + ".yml"); err != nil {
		return nil, err
	}
	for _, role := range roles {
		root := path.Join("roles", role)
		if _, err := fs.Stat(fsys, path.Join(root, "tasks", entry+".yml")); err != nil {
			continue
		}
		err := fs.WalkDir(fsys, root, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !belongs(strings.TrimPrefix(p, root+"/"), entry) {
				return err
			}
			return add(p)
		})
		if err != nil {
			return nil, err
		}
	}
	return files, nil
}

// belongs tells whether an entry point can read a file of its role.
func belongs(file, entry string) bool {
	switch dir, _, _ := strings.Cut(file, "/"); {
	case dir == "tasks" || dir == "vars":
		return path.Base(file) == entry+".yml"
	case dir == "files":
		return strings.HasPrefix(file, "files/build/") == (entry == "build")
	default:
		return dir == "defaults"
	}
}

// digestOf is the hex digest of its arguments, which must print the same whenever they are the same.
func digestOf(parts ...any) string {
	h := sha256.New()
	for _, p := range parts {
		if m, ok := p.(map[string]string); ok {
			for _, k := range sortedKeys(m) {
				fmt.Fprintf(h, "%q=%q\n", k, m[k])
			}
			continue
		}
		fmt.Fprintf(h, "%#v\n", p)
	}
	return hex.EncodeToString(h.Sum(nil))[:32]
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
