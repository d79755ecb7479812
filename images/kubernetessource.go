package images

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// kubernetesSums digests what Kubernetes comes from.
func kubernetesSums(from string) (map[string]string, error) {
	if from != KubernetesPinned {
		return moduleFiles(from)
	}
	pins, err := publishedPins()
	if err != nil {
		return nil, err
	}
	sums := map[string]string{}
	for name, pin := range pins {
		sums[name] = path.Base(pin.Source) + "@" + pin.Digest // its tag is the version that a node is told
	}
	return sums, nil
}

// CheckKubernetes tells whether there is something to put on nodes, as far as that is known before a bake.
func CheckKubernetes(from string) error {
	if from == KubernetesPinned {
		_, err := publishedPins()
		return err
	}
	data, err := os.ReadFile(filepath.Join(from, "go.mod"))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoBundle, err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == kubernetesModule {
			return nil
		}
	}
	return fmt.Errorf("%w: %s requires no %s", ErrNoBundle, filepath.Join(from, "go.mod"), kubernetesModule)
}

// moduleFiles digests what the bundle's module consists of.
func moduleFiles(dir string) (map[string]string, error) {
	files := map[string]string{}
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w; %s", ErrNoBundle, err, BundleHelp)
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if ext := filepath.Ext(path); ext != ".go" && ext != ".mod" && ext != ".sum" {
			return nil
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		files[filepath.ToSlash(rel)], err = fileSum(path)
		return err
	})
	if _, ok := files["go.mod"]; err == nil && !ok {
		err = fmt.Errorf("%s has no go.mod", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w; %s", ErrNoBundle, err, BundleHelp)
	}
	return files, nil
}
