package images

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// sourceFile is a file of a source package as the archive's signed index has it.
// The digest is in apt's form, SHA512:… or SHA256:….
type sourceFile struct{ name, digest string }

// sources puts the files of an artifact's source package into the tree it is built in: kept ones, else fetched ones, which it
// keeps. All are held against the archive's signed index. A replay has those of the first bake.
func (b *bakery) sources(ctx context.Context, tree string, a *Artifact) error {
	name, version, _ := strings.Cut(a.Source, " ")
	dir := filepath.Join(tree, sourceDir)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if b.replay != nil {
		i := slices.IndexFunc(b.replay.Artifacts, func(old Artifact) bool { return old.Role == a.Role })
		if i < 0 {
			return fmt.Errorf("%w: it was baked without an artifact of role %s", ErrCannotRebake, a.Role)
		}
		a.Sources = b.replay.Artifacts[i].Sources
		for _, k := range a.Sources {
			if err := os.Link(b.keptPath(k), filepath.Join(dir, k.File)); err != nil {
				return err
			}
		}
		return nil
	}
	apt := func(script string, args ...string) (string, error) {
		return b.run(ctx, b.contained(enterTree, append([]string{tree, filepath.Join(b.dir, "debs-resolve"), "chroot", tree, "/bin/sh", "-euc",
			`cd "$1"; shift; ` + script, "sh", sourceDir}, args...)...))
	}
	uris, err := apt(`exec apt-get source -qq --print-uris "$1"`, name+"="+version)
	if err != nil {
		return err
	}
	files, err := parseURIs(uris)
	if err != nil {
		return fmt.Errorf("apt-get source %s: %w", name, err)
	}
	for _, f := range files {
		if err := b.linkKept(f, filepath.Join(dir, f.name)); err != nil {
			return err
		}
	}
	// Each on its own: what the server has is fetched, whatever it lacks.
	if _, failed := apt(`exec apt-get source -qq --download-only "$1"`, name+"="+version); failed != nil {
		if err := describe(apt, dir, name, version, files); err != nil {
			return errors.Join(failed, err)
		}
	}
	for _, f := range files {
		k, err := b.keepFile(filepath.Join(dir, f.name))
		if err != nil {
			return err
		}
		a.Sources = append(a.Sources, k)
	}
	return nil
}

var uriLine = regexp.MustCompile(`^'[^']+' (\S+) [0-9]+ (SHA512:[0-9a-f]{128}|SHA256:[0-9a-f]{64})$`)

// parseURIs reads what apt-get --print-uris prints.
func parseURIs(text string) ([]sourceFile, error) {
	var files []sourceFile
	for line := range strings.Lines(text) {
		m := uriLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil || m[1] != path.Base(m[1]) {
			return nil, fmt.Errorf("it said %q, which names no file with its digest", line)
		}
		files = append(files, sourceFile{name: m[1], digest: m[2]})
	}
	if len(files) == 0 {
		return nil, errors.New("it named no files")
	}
	return files, nil
}

// linkKept links to a kept file of any definition, if there is one: distributions share source packages.
func (b *bakery) linkKept(f sourceFile, to string) error {
	kept, err := filepath.Glob(filepath.Join(b.store.dir, "packages", "*", "*", f.name))
	if err != nil {
		return err
	}
	for _, at := range kept {
		if f.is(at) {
			if err := os.Link(at, to); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
	}
	return nil
}

// describe writes what an archive's server does not have although its index does, where that can be: a source package's description
// (.dsc) says what the signed index says. Other files may be kept from another distribution, which linkKept finds.
func describe(apt func(string, ...string) (string, error), dir, name, version string, files []sourceFile) error {
	for _, f := range files {
		if exists(filepath.Join(dir, f.name)) {
			continue
		}
		if path.Ext(f.name) != ".dsc" {
			return fmt.Errorf("the archive's server does not have %s; distributions share source packages: one baked before from another archive may bring it, as in `bed image build debian-12`", f.name)
		}
		index, err := apt(`exec apt-cache showsrc --only-source "$1"`, name)
		if err != nil {
			return err
		}
		text, err := description(index, version)
		if err != nil {
			return fmt.Errorf("source package %s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(dir, f.name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// description writes a .dsc file from the stanza of that version in an archive's index of sources.
func description(index, version string) (string, error) {
	for stanza := range strings.SplitSeq(index, "\n\n") {
		var out strings.Builder
		right := false
		for line := range strings.Lines(stanza + "\n") {
			if rest, ok := strings.CutPrefix(line, "Package: "); ok {
				line = "Source: " + rest
			}
			right = right || line == "Version: "+version+"\n"
			if strings.HasPrefix(line, " ") && strings.HasSuffix(line, ".dsc\n") { // itself, which no .dsc names
				continue
			}
			out.WriteString(line)
		}
		if right {
			return out.String(), nil
		}
	}
	return "", fmt.Errorf("the index has no version %s", version)
}

// is tells whether a file is this one.
func (f sourceFile) is(path string) bool {
	kind, want, _ := strings.Cut(f.digest, ":")
	h := map[string]hash.Hash{"SHA256": sha256.New(), "SHA512": sha512.New()}[kind]
	data, err := os.Open(path)
	if err != nil || h == nil {
		return false
	}
	defer data.Close()
	_, err = io.Copy(h, data)
	return err == nil && hex.EncodeToString(h.Sum(nil)) == want
}
