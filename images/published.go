package images

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	bolt "go.etcd.io/bbolt"

	"github.com/bedfellow/bedfellow/pkg/progress"
)

// KubernetesPinned, for a Request, has the bundle's programs taken out of the container images that the lock has of Kubernetes, instead of
// built: kind's image of a node, and Flannel's.
const KubernetesPinned = "pinned"

// The pins of those two images.
const (
	nodePin    = "kubernetes/node"
	flannelPin = "kubernetes/flannel"
)

// publishedPins are the digests of what KubernetesPinned means.
func publishedPins() (map[string]Pin, error) {
	lock, err := OpenLock()
	if err != nil {
		return nil, err
	}
	pins := map[string]Pin{}
	for _, name := range []string{nodePin, flannelPin} {
		if pins[name], err = lock.Pin(name); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNoBundle, err)
		}
		if !strings.HasPrefix(pins[name].Source, "docker://") {
			return nil, fmt.Errorf("%w: %s is to be a container image, docker://…, and its source is %s; name another in %s", ErrNoBundle, name, pins[name].Source, LockFile)
		}
	}
	return pins, nil
}

// publishedPrograms takes the bundle's programs out of published container images, or finds them taken. Their versions are the tags that
// upstream gave them.
func (b *bakery) publishedPrograms(ctx context.Context) (Artifact, map[string]string, error) {
	pins, err := publishedPins()
	if err != nil {
		return Artifact{}, nil, err
	}
	sums, err := kubernetesSums(KubernetesPinned)
	if err != nil {
		return Artifact{}, nil, err
	}
	a := Artifact{
		Role: kubernetesRole, Key: digestOf("published programs", bakeVersion, runtime.GOARCH, sums),
		Source: pins[nodePin].Source + " and " + pins[flannelPin].Source,
	}
	lock, err := b.store.lock(ctx, "artifact-"+a.Key)
	if err != nil {
		return Artifact{}, nil, err
	}
	defer lock.Close()
	kept, ok := b.store.keptArtifact(a.Key)
	if ok {
		versions, err := keptVersions(b.artifactPath(a.Key))
		return kept, versions, err
	}
	bin := filepath.Join(b.dir, "published")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return a, nil, err
	}
	versions, err := b.nodePrograms(ctx, pins[nodePin], bin)
	if err != nil {
		return a, nil, fmt.Errorf("%s: %w", pins[nodePin].Source, err)
	}
	if versions["flanneld"], err = b.flannelProgram(ctx, pins[flannelPin], bin); err != nil {
		return a, nil, fmt.Errorf("%s: %w", pins[flannelPin].Source, err)
	}
	if err := checkPrograms(bin, versions); err != nil {
		return a, nil, fmt.Errorf("%s: %w", a.Source, err)
	}
	if err := os.WriteFile(filepath.Join(bin, versionsFile), formatVersions(versions), 0o644); err != nil {
		return a, nil, err
	}
	return a, versions, b.keepArtifact(ctx, &a, bin)
}

// versionsFile tells beside the programs which versions they are.
const versionsFile = "versions"

func formatVersions(versions map[string]string) []byte {
	var out []byte
	for _, program := range sortedKeys(versions) {
		out = fmt.Appendf(out, "%s %s\n", program, versions[program])
	}
	return out
}

// keptVersions reads what formatVersions wrote.
func keptVersions(archive string) (map[string]string, error) {
	versions := map[string]string{}
	err := eachMember(archive, func(h *tar.Header, r io.Reader) error {
		if path.Clean(h.Name) != versionsFile {
			return nil
		}
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			program, version, _ := strings.Cut(lines.Text(), " ")
			versions[program] = version
		}
		return lines.Err()
	})
	return versions, err
}

// checkPrograms looks whether all are there, for this processor, and those whose image has nothing else are whole in themselves.
func checkPrograms(bin string, versions map[string]string) error {
	if v := versions["pause"]; v != pauseVersion {
		return fmt.Errorf("its pods want pause:%s, and nodes are made for pause:%s; name an image of the Kubernetes that `bed bundle` builds in %s", v, pauseVersion, LockFile)
	}
	for _, p := range programs {
		f, err := elf.Open(filepath.Join(bin, p.name))
		if err != nil {
			return fmt.Errorf("its %s: %w", p.name, err)
		}
		needs, err := f.ImportedLibraries()
		machine := f.Machine
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("its %s: %w", p.name, err)
		}
		if machine != elfMachine() {
			return fmt.Errorf("its %s is for another processor, %s", p.name, machine)
		}
		if p.image && len(needs) > 0 {
			return fmt.Errorf("its %s needs %s, and goes into a container without", p.name, strings.Join(needs, ", "))
		}
	}
	return nil
}

// pull finds a container image by its pin, for this processor. What its layers hold comes when they are read, and is held against their
// digests.
func pull(ctx context.Context, pin Pin) (v1.Image, error) {
	tag, err := name.ParseReference(strings.TrimPrefix(pin.Source, "docker://"))
	if err != nil {
		return nil, err
	}
	img, err := remote.Image(tag.Context().Digest(pin.Digest), remote.WithContext(ctx), remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}))
	if err != nil {
		return nil, err
	}
	if about, err := img.ConfigFile(); err != nil {
		return nil, err
	} else if about.Architecture != runtime.GOARCH {
		return nil, fmt.Errorf("it is for %s, and this host and its nodes are %s", about.Architecture, runtime.GOARCH)
	}
	return img, nil
}

// eachFile goes through the regular files of a container image as a container would see them, by path from the root.
func eachFile(img v1.Image, fn func(name string, r io.Reader) error) error {
	layers := mutate.Extract(img)
	defer layers.Close()
	return eachRegular(layers, fn)
}

func eachRegular(archive io.Reader, fn func(name string, r io.Reader) error) error {
	in := tar.NewReader(archive)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if err := fn(path.Clean("/"+h.Name), in); err != nil {
			return err
		}
	}
}

func writeProgram(to string, r io.Reader) error {
	f, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// containerdStore is where a node's containerd has its images.
const containerdStore = "/var/lib/containerd/"

// nodePrograms takes Kubernetes' programs out of an image of a node: those on it, and those in the container images that its containerd has
// in store.
func (b *bakery) nodePrograms(ctx context.Context, pin Pin, bin string) (_ map[string]string, err error) {
	step := progress.Start(ctx, "fetch %s", pin.Source)
	defer func() { _ = step.End(err) }()
	ctx, cancel := context.WithTimeoutCause(ctx, fetchTimeout, fmt.Errorf("it was not fetched within %s", fetchTimeout))
	defer cancel()
	img, err := pull(ctx, pin)
	if err != nil {
		return nil, err
	}
	store := filepath.Join(b.dir, "containerd")
	if err := os.Mkdir(store, 0o755); err != nil {
		return nil, err
	}
	const blobs, database = containerdStore + "io.containerd.content.v1.content/blobs/sha256/", containerdStore + "io.containerd.metadata.v1.bolt/meta.db"
	n := 0
	err = eachFile(img, func(name string, r io.Reader) error {
		switch {
		case name == database:
			return writeProgram(filepath.Join(store, "meta.db"), r)
		case path.Dir(name)+"/" == blobs:
			n++
			step.Update("%d of its images' files", n)
			return writeProgram(filepath.Join(store, path.Base(name)), r)
		case path.Dir(name) == "/usr/bin" && onNode(path.Base(name)):
			return writeProgram(filepath.Join(bin, path.Base(name)), r)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	images, err := storedImages(filepath.Join(store, "meta.db"))
	if err != nil {
		return nil, fmt.Errorf("the images of its containerd: %w", err)
	}
	versions := map[string]string{}
	for _, p := range programs {
		if !p.image || p.name == "flanneld" {
			continue
		}
		found, ok := images[p.name]
		if !ok {
			return nil, fmt.Errorf("its containerd has no image of %s: it is to be an image of a node as kind publishes them", p.name)
		}
		versions[p.name] = found.tag
		if err := programOf(store, found.digest, p.name, bin); err != nil {
			return nil, fmt.Errorf("its image of %s: %w", p.name, err)
		}
	}
	for _, p := range programs {
		if !p.image {
			versions[p.name] = versions["kube-apiserver"] // kind builds them of one Kubernetes
		}
	}
	return versions, nil
}

// onNode tells whether a program of the bundle is on the node itself.
func onNode(program string) bool {
	for _, p := range programs {
		if p.name == program {
			return !p.image
		}
	}
	return false
}

// storedImage is an image in containerd's store.
type storedImage struct{ tag, digest string }

// storedImages reads from containerd's database which images the kubelet's containerd has, by the last part of their names without the
// processor that some have.
func storedImages(database string) (map[string]storedImage, error) {
	db, err := bolt.Open(database, 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	found := map[string]storedImage{}
	return found, db.View(func(tx *bolt.Tx) error {
		bucket := tx.Bucket([]byte("v1"))
		for _, name := range []string{"k8s.io", "images"} {
			if bucket == nil {
				break
			}
			bucket = bucket.Bucket([]byte(name))
		}
		if bucket == nil {
			return errors.New("it has none of namespace k8s.io")
		}
		return bucket.ForEachBucket(func(key []byte) error {
			tag, err := name.NewTag(string(key)) // not strictly: that takes localhost for no registry
			if err != nil {
				return nil // named by its digest, as each is once more
			}
			target := bucket.Bucket(key).Bucket([]byte("target"))
			if target == nil {
				return fmt.Errorf("%s leads to nothing", key)
			}
			program := strings.TrimSuffix(path.Base(tag.RepositoryStr()), "-"+runtime.GOARCH)
			found[program] = storedImage{tag.TagStr(), string(target.Get([]byte("digest")))}
			return nil
		})
	})
}

// programOf takes a program out of an image in a folder of blobs, by digest of its manifest or of an index of those.
func programOf(blobs, digest, program, bin string) error {
	blob := func(digest string) string { return filepath.Join(blobs, strings.TrimPrefix(digest, "sha256:")) }
	data, err := os.ReadFile(blob(digest))
	if err != nil {
		return err
	}
	manifest, err := v1.ParseManifest(bytes.NewReader(data))
	if err != nil {
		return err
	}
	if len(manifest.Layers) == 0 {
		index, err := v1.ParseIndexManifest(bytes.NewReader(data))
		if err != nil {
			return err
		}
		for _, m := range index.Manifests {
			if m.Platform == nil || m.Platform.Architecture == runtime.GOARCH {
				return programOf(blobs, m.Digest.String(), program, bin)
			}
		}
		return errors.New("it has none for " + runtime.GOARCH)
	}
	found := false
	for _, l := range manifest.Layers { // a later one goes over an earlier
		err := eachInLayer(blob(l.Digest.String()), func(name string, r io.Reader) error {
			if path.Base(name) != program {
				return nil
			}
			found = true
			return writeProgram(filepath.Join(bin, program), r)
		})
		if err != nil {
			return fmt.Errorf("layer %s: %w", l.Digest, err)
		}
	}
	if !found {
		return errors.New("it has no program of that name")
	}
	return nil
}

func eachInLayer(file string, fn func(name string, r io.Reader) error) error {
	layer, err := openTar(file)
	if err != nil {
		return err
	}
	defer layer.Close()
	return eachRegular(layer, fn)
}

// flannelProgram takes flanneld out of Flannel's image. Its version is the image's tag.
func (b *bakery) flannelProgram(ctx context.Context, pin Pin, bin string) (_ string, err error) {
	step := progress.Start(ctx, "fetch %s", pin.Source)
	defer func() { _ = step.End(err) }()
	ctx, cancel := context.WithTimeoutCause(ctx, fetchTimeout, fmt.Errorf("it was not fetched within %s", fetchTimeout))
	defer cancel()
	tag, err := name.NewTag(strings.TrimPrefix(pin.Source, "docker://"))
	if err != nil {
		return "", err
	}
	img, err := pull(ctx, pin)
	if err != nil {
		return "", err
	}
	return tag.TagStr(), eachFile(img, func(name string, r io.Reader) error {
		if path.Base(name) != "flanneld" {
			return nil
		}
		return writeProgram(filepath.Join(bin, "flanneld"), r)
	})
}
