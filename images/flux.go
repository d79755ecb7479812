package images

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/bedfellow/bedfellow/pkg/progress"
)

// fluxRole puts Flux on an image. No distribution has Flux, so that it is only on images for which an artifact of it is given.
const fluxRole = "flux"

// FluxEnv names the Flux artifact of images for which none is named otherwise.
const FluxEnv = "BEDFELLOW_FLUX"

// FluxPinned, for a Request, is the container image that the lock has of Flux for the definition.
const FluxPinned = "pinned"

// ErrNoFlux says that the Flux artifact is not to be had or is not one.
var ErrNoFlux = errors.New("no Flux to put on the image")

// FluxHelp says how to name a Flux artifact.
const FluxHelp = "give one with -c flux=… or " + FluxEnv + "=…: the path of a tar archive of an installed tree, of a .deb or of a directory of .debs, " +
	"https://…#sha256:… of one, or a container image as docker://…@sha256:…"

// fluxArtifact is a Flux to put on an image.
type fluxArtifact struct {
	Source string // as it was asked for
	Digest string // sha256:… of what is put on the image, or of the container image it is taken from
	pin    Pin    // where it is fetched from, if it is
}

// address names the artifact for another machine, whose lock may be another.
func (a fluxArtifact) address() string {
	if a.pin.Source == "" {
		return a.Source
	}
	return a.pin.Source + "#" + a.pin.Digest
}

// resolveFlux finds out which Flux a request means, without fetching it: what is on disk is read.
func resolveFlux(source, definition string) (fluxArtifact, error) {
	a := fluxArtifact{Source: source}
	switch {
	case source == FluxPinned:
		lock, err := OpenLock()
		if err != nil {
			return a, err
		}
		if a.pin, err = lock.Pin("flux/" + definition); err != nil {
			return a, fmt.Errorf("%w for %s: %w", ErrNoFlux, definition, err)
		}
		a.Digest = a.pin.Digest
		return a, nil
	case strings.Contains(source, "://"):
		from, digest, _ := strings.Cut(source, "#")
		a.pin = Pin{Name: "flux", Source: from, Digest: digest}
		if strings.HasPrefix(from, "docker://") {
			if ref, at, ok := strings.Cut(from, "@"); ok && digest == "" {
				a.pin.Source, a.pin.Digest = ref, at
			}
		}
		if a.Digest = a.pin.Digest; !pinDigest.MatchString(a.Digest) || a.Digest == "" {
			return a, fmt.Errorf("%w: %s has no digest; write it behind the address: %s#sha256:…", ErrNoFlux, source, from)
		}
		return a, nil
	}
	sum, err := localSum(source)
	if err != nil {
		return a, fmt.Errorf("%w: %w", ErrNoFlux, err)
	}
	a.Digest = "sha256:" + sum
	return a, nil
}

// CheckFlux tells whether an image of a definition can have that Flux, as far as that is known before a bake: it is there, or pinned,
// and looks like one. What it needs of the distribution, the bake finds out.
func CheckFlux(source, definition string) error {
	a, err := resolveFlux(source, definition)
	if err != nil || a.pin.Source != "" {
		return err
	}
	if files, err := fluxFiles(source); err != nil || filepath.Ext(files[0]) == ".deb" {
		return err
	}
	if err := checkTar(source); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrNoFlux, source, err)
	}
	return nil
}

// localSum digests a file, or all packages of a directory.
func localSum(source string) (string, error) {
	files, err := fluxFiles(source)
	if err != nil {
		return "", err
	}
	if len(files) == 1 {
		return fileSum(files[0])
	}
	sums := map[string]string{}
	for _, f := range files {
		if sums[filepath.Base(f)], err = fileSum(f); err != nil {
			return "", err
		}
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", sums)) // maps print in order
	return hex.EncodeToString(sum[:]), nil
}

// fluxFiles lists what an artifact on disk consists of.
func fluxFiles(source string) ([]string, error) {
	info, err := os.Stat(source)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{source}, nil
	}
	files, err := filepath.Glob(filepath.Join(source, "*.deb"))
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("the directory %s has no .deb", source)
	}
	return files, err
}

// flux puts the artifact on the image's tree, over the libraries that the role has installed, and looks whether it would run. It is
// kept as one tar archive, as a replay needs it.
func (b *bakery) flux(ctx context.Context, tree string) error {
	defer b.stage("flux")()
	kept := filepath.Join(b.dir, "flux.tar")
	if b.replay != nil {
		b.m.Flux = b.replay.Flux
		kept = b.keptPath(b.m.Flux.Kept)
	} else {
		if err := b.fluxTar(ctx, kept); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrNoFlux, b.art.Source, err)
		}
		if now, err := resolveFlux(b.art.address(), b.def.Name); err != nil || now.Digest != b.art.Digest {
			return fmt.Errorf("%w: %s was changed during the bake (%w); bake again", ErrNoFlux, b.art.Source, errors.Join(err, errors.New("it has another digest now")))
		}
		k, err := b.keepFile(kept)
		if err != nil {
			return err
		}
		b.m.Flux = &FluxManifest{Source: b.art.Source, Digest: b.art.Digest, Kept: k}
	}
	// In the tree, so that no link in it leads to the host; root's, whoever packed it.
	if _, err := b.run(ctx, b.contained(`exec chroot "$1" tar -C / --keep-directory-symlink --no-same-owner -xpf - <"$2"`, tree, kept)); err != nil {
		return fmt.Errorf("%w: unpacking %s: %w", ErrNoFlux, b.m.Flux.Source, err)
	}
	if err := b.fluxRuns(tree, kept); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrNoFlux, b.m.Flux.Source, err)
	}
	debs, err := b.cache("flux")
	if err != nil {
		return err
	}
	version, err := b.run(ctx, b.contained(enterTree, tree, debs, "chroot", tree, "flux", "version"))
	if err != nil {
		return fmt.Errorf("%w: %s does not run on %s: %w", ErrNoFlux, b.m.Flux.Source, b.def.Name, err)
	}
	b.m.Flux.Version = strings.TrimSpace(version)
	return nil
}

// fluxTar writes the artifact as a tar archive of files below /.
func (b *bakery) fluxTar(ctx context.Context, to string) error {
	files := []string{}
	switch {
	case strings.HasPrefix(b.art.pin.Source, "docker://"):
		return b.fluxFromContainer(ctx, to)
	case b.art.pin.Source != "":
		path, err := b.store.Fetch(ctx, b.art.pin, path.Base(b.art.pin.Source))
		if err != nil {
			return err
		}
		files = []string{path}
	default:
		var err error
		if files, err = fluxFiles(b.art.Source); err != nil {
			return err
		}
	}
	if filepath.Ext(files[0]) != ".deb" {
		return plainTar(files[0], to)
	}
	var trees []string
	for i, f := range files {
		tree := filepath.Join(b.dir, fmt.Sprintf("flux-deb-%d", i)) // of its own: what one links, the next must not follow
		trees = append(trees, tree)
		about, err := b.run(ctx, []string{"dpkg-deb", "--field", f, "Architecture"})
		if err != nil {
			return err
		}
		if arch := strings.TrimSpace(about); arch != runtime.GOARCH && arch != "all" {
			return fmt.Errorf("%s is a package for %s, and this host and its nodes are %s", f, arch, runtime.GOARCH)
		}
		if _, err := b.run(ctx, []string{"dpkg-deb", "--extract", f, tree}); err != nil {
			return err
		}
	}
	argv := []string{"tar", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-cf", to}
	for _, tree := range trees {
		argv = append(argv, "-C", tree, ".")
	}
	if _, err := b.run(ctx, argv); err != nil {
		return err
	}
	return checkTar(to)
}

// plainTar copies a tar archive, without its compression if it is gzip's.
func plainTar(from, to string) error {
	if err := checkTar(from); err != nil {
		return err
	}
	in, err := openTar(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// checkTar looks whether an archive has a usr/bin/flux, and leads nowhere else.
func checkTar(archive string) error {
	found := false
	err := eachMember(archive, func(h *tar.Header, _ io.Reader) error {
		name := path.Clean("/" + h.Name)
		top, _, _ := strings.Cut(name[1:], "/")
		if strings.Contains("/"+h.Name+"/", "/../") || !slices.Contains([]string{"", "usr", "lib", "etc", "opt"}, top) {
			return fmt.Errorf("it has %q, and a tree of Flux has /usr, /lib, /etc and /opt", h.Name)
		}
		found = found || name == "/usr/bin/flux"
		return nil
	})
	if err == nil && !found {
		err = errors.New("it has no usr/bin/flux: it must be a tar archive of what Flux installs with --prefix=/usr, or packages of that")
	}
	return err
}

// openTar reads a tar archive without its compression.
func openTar(archive string) (io.ReadCloser, error) {
	f, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	in := bufio.NewReader(f)
	if magic, _ := in.Peek(2); !bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		return readCloser{in, f}, nil
	}
	z, err := gzip.NewReader(in)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return readCloser{z, f}, nil
}

type readCloser struct {
	io.Reader
	io.Closer
}

func eachMember(archive string, fn func(*tar.Header, io.Reader) error) error {
	f, err := openTar(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	in := tar.NewReader(f)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s is no tar archive: %w", archive, err)
		}
		if err := fn(h, in); err != nil {
			return err
		}
	}
}

// fluxFile tells the files of Flux, its modules and bindings from the rest of a container image: none of the distribution's has a
// part of its path that begins like that.
var fluxFile = regexp.MustCompile(`^/(usr|etc)/(.*/)?(_?flux|lib(flux|reapi)|pam_flux)`)

// fluxFromContainer takes Flux out of a container image.
func (b *bakery) fluxFromContainer(ctx context.Context, to string) (err error) {
	step := progress.Start(ctx, "fetch %s", b.art.pin.Source)
	defer func() { _ = step.End(err) }()
	ctx, cancel := context.WithTimeoutCause(ctx, fetchTimeout, fmt.Errorf("it was not fetched within %s", fetchTimeout))
	defer cancel()
	img, err := pull(ctx, b.art.pin)
	if err != nil {
		return err
	}
	layers := mutate.Extract(img)
	defer layers.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	files := map[string]memberFile{}
	in := tar.NewReader(layers)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		name := path.Clean("/" + h.Name)
		if !fluxFile.MatchString(name) || h.Typeflag == tar.TypeDir {
			continue
		}
		data, err := io.ReadAll(in)
		if err != nil {
			return err
		}
		files[name] = memberFile{h, data}
		step.Update("%d files", len(files))
	}
	if _, ok := files["/usr/bin/flux"]; !ok {
		return errors.New("it has no /usr/bin/flux")
	}
	return writeMembers(out, files)
}

type memberFile struct {
	*tar.Header
	data []byte
}

// writeMembers writes a tar archive that is the same whenever the files are.
func writeMembers(out io.Writer, files map[string]memberFile) error {
	w := tar.NewWriter(out)
	dirs := map[string]bool{"/": true}
	var parents func(string) error
	parents = func(name string) error {
		dir := path.Dir(name)
		if dirs[dir] {
			return nil
		}
		dirs[dir] = true
		if err := parents(dir); err != nil {
			return err
		}
		return w.WriteHeader(&tar.Header{Name: "." + dir + "/", Typeflag: tar.TypeDir, Mode: 0o755})
	}
	for _, name := range sortedKeys(files) {
		if err := parents(name); err != nil {
			return err
		}
		m := files[name]
		h := &tar.Header{Name: "." + name, Typeflag: m.Typeflag, Mode: m.Mode, Linkname: m.Linkname, Size: int64(len(m.data))}
		if h.Typeflag == tar.TypeLink { // relative to the archive, as names are
			h.Linkname = "." + path.Clean("/"+m.Linkname)
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := w.Write(m.data); err != nil {
			return err
		}
	}
	return w.Close()
}

// elfMachine is this host's processor, and its nodes'.
func elfMachine() elf.Machine {
	return map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[runtime.GOARCH]
}

// fluxRuns looks whether the tree has every library that a file of the archive needs, and names those that it has not: those of
// another distribution have other names.
func (b *bakery) fluxRuns(tree, archive string) error {
	have := map[string]bool{}
	for _, dir := range []string{"usr", "lib", "lib64"} { // the last two are links into the first, or not
		err := filepath.WalkDir(filepath.Join(tree, dir), func(p string, d fs.DirEntry, err error) error {
			if err == nil && strings.Contains(d.Name(), ".so") {
				have[d.Name()] = true
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	missing := map[string]bool{}
	err := eachMember(archive, func(h *tar.Header, r io.Reader) error {
		if h.Typeflag != tar.TypeReg || h.Size < 64 {
			return nil
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		f, err := elf.NewFile(bytes.NewReader(data))
		if err != nil {
			return nil // a script, a page
		}
		if f.Machine != elfMachine() {
			return fmt.Errorf("%s is for another processor, %s", h.Name, f.Machine)
		}
		needs, err := f.ImportedLibraries()
		if err != nil {
			return nil
		}
		for _, lib := range needs {
			if !have[lib] {
				missing[lib] = true
			}
		}
		return nil
	})
	if err == nil && len(missing) > 0 {
		err = fmt.Errorf("it needs %s, which %s does not have: it was built for another distribution, or its build needs packages that role %s does not install (flux_packages)",
			strings.Join(slices.Sorted(maps.Keys(missing)), ", "), b.def.Name, fluxRole)
	}
	return err
}
