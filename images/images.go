// Package images makes what is on a node's disk: a distribution's base system with roles of ours baked in.
//
// An image is kept under the key of its inputs (definition, roles and the role files that go in), so that asking again for
// the same needs no network, and has a digest of its content. It holds no secret and no identity: no host key, munge key,
// machine id or random seed. Nothing half-made is ever seen: an image is renamed into its place when it is whole.
//
// A store is a directory:
//
//	<key>/tree or vm      the image, in the form that was asked for
//	<key>/manifest.json   what is in it and what it was made from
//	<key>/files           every path of the root tree with its digest, for Verify
//	artifacts/            what roles build, by the key of everything that goes in
//	keyrings/             archive keys of distributions that the host's does not know
//	pinned/               what a lock names by digest
//	packages/             all that bakes took from outside, by digest: packages, package lists, sources; also the next bake's cache
//	bake/                 bakes under way; locks/ tells which of them are alive
package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/playbooks"
)

// DefaultDir is where images are kept unless the caller says otherwise: on Linux where root bakes them for all, if that is there or
// the caller is root; of the user otherwise.
func DefaultDir() string {
	const system = "/var/lib/bedfellow/images"
	if home, err := os.UserHomeDir(); err == nil && os.Geteuid() != 0 && (runtime.GOOS != "linux" || !exists(system)) {
		return filepath.Join(home, ".bedfellow/images")
	}
	return system
}

// ErrNotFound says that the store has no such image.
var ErrNotFound = errors.New("no such image")

// errDamaged says that an image's manifest does not read.
var errDamaged = errors.New("damaged image")

// ErrInUse says that nodes run on the image, or are stopped with what they hold over its disk.
var ErrInUse = errors.New("there are nodes on it")

// Definition is a distribution an image can be made from.
type Definition struct {
	Name         string   // as in bedfellow:image
	Distribution string   // debian, ubuntu
	Suite        string   // code name in the archive
	Components   []string // of the archive
	Keyring      string   // package with the keys its archive is signed with
}

// keyring is the file of the package Keyring.
func (d Definition) keyring() string {
	return "/usr/share/keyrings/" + d.Distribution + "-archive-keyring.gpg"
}

// Definitions lists what there is.
func Definitions() []Definition {
	return []Definition{
		{Name: "debian-12", Distribution: "debian", Suite: "bookworm", Components: []string{"main"}, Keyring: "debian-archive-keyring"},
		{Name: "debian-13", Distribution: "debian", Suite: "trixie", Components: []string{"main"}, Keyring: "debian-archive-keyring"},
		{Name: "ubuntu-22.04", Distribution: "ubuntu", Suite: "jammy", Components: []string{"main", "universe"}, Keyring: "ubuntu-archive-keyring"},
	}
}

// Request asks for an image.
type Request struct {
	Definition string
	Format     bed.ImageFormat // empty is a tree
	Roles      []string        // of playbooks.Roles, in any order; none is all that the format has a use for
	// Flux is the artifact of role flux: a path of a tar archive, a .deb or a directory of .debs, an address with a digest, or
	// FluxPinned. Empty is an image without that role.
	Flux string
	// Kubernetes is where the bundle's programs come from: a Go module to build, a directory, or KubernetesPinned. Empty is an image without
	// roles kubernetes and usernetes.
	Kubernetes string
}

// recipe is what a request comes to: which roles are baked in which order, and into what.
type recipe struct {
	def    Definition
	format bed.ImageFormat
	roles  []string
	art    fluxArtifact // zero without role flux
	// kubernetes is where the bundle's programs come from, a directory as an absolute path; empty without Kubernetes.
	kubernetes string
	// kubernetesSums are the digests of that, where an earlier bake found them.
	kubernetesSums map[string]string
}

// resolve checks the request.
func (r Request) resolve() (recipe, error) {
	if r.Format == "" {
		r.Format = bed.Tree
	}
	if !slices.Contains(bed.ImageFormats(), r.Format) {
		return recipe{}, fmt.Errorf("image %s: no such format %q; there are: %v", r.Definition, r.Format, bed.ImageFormats())
	}
	defs := Definitions()
	i := slices.IndexFunc(defs, func(d Definition) bool { return d.Name == r.Definition })
	if i < 0 {
		names := make([]string, len(defs))
		for i, d := range defs {
			names[i] = d.Name
		}
		return recipe{}, fmt.Errorf("image %q: no such definition; there are: %s", r.Definition, strings.Join(names, ", "))
	}
	all := playbooks.Roles()
	for _, role := range r.Roles {
		if !slices.Contains(all, role) {
			return recipe{}, fmt.Errorf("image %s: no such role %q; there are: %s", r.Definition, role, strings.Join(all, ", "))
		}
	}
	all = slices.DeleteFunc(all, func(role string) bool {
		switch role {
		case kernelRole: // what a machine needs to boot by itself, and a tree has no use for
			return r.Format != bed.VM
		case fluxRole:
			return r.Flux == ""
		case kubernetesRole, mlServerRole: // of a container alone
			return !slices.Contains(r.Roles, role)
		case usernetesRole:
			return r.Kubernetes == "" || slices.Contains(r.Roles, kubernetesRole)
		}
		return len(r.Roles) > 0 && !slices.Contains(r.Roles, role)
	})
	found := recipe{def: defs[i], format: r.Format, roles: all}
	if found.kubernetes = r.Kubernetes; r.Kubernetes != "" && r.Kubernetes != KubernetesPinned {
		var err error
		if found.kubernetes, err = filepath.Abs(r.Kubernetes); err != nil {
			return recipe{}, err
		}
	} else if r.Kubernetes != "" {
		if _, err := publishedPins(); err != nil {
			return recipe{}, fmt.Errorf("image %s: %w", r.Definition, err)
		}
	} else if slices.Contains(r.Roles, kubernetesRole) || slices.Contains(r.Roles, usernetesRole) {
		return recipe{}, fmt.Errorf("image %s: %w; %s", r.Definition, ErrNoBundle, BundleHelp)
	}
	if r.Flux == "" && slices.Contains(r.Roles, fluxRole) {
		return recipe{}, fmt.Errorf("image %s: %w; %s", r.Definition, ErrNoFlux, FluxHelp)
	}
	if r.Flux != "" {
		var err error
		if found.art, err = resolveFlux(r.Flux, r.Definition); err != nil {
			return recipe{}, fmt.Errorf("image %s: %w; %s", r.Definition, err, FluxHelp)
		}
	}
	return found, nil
}

// Image is one baked image.
type Image struct {
	Key        string // of the inputs
	Digest     string // of the content: sha256:…
	Definition string //
	Format     bed.ImageFormat
	Roles      []string // in the order they were baked
	Path       string   // absolute path of the root tree or of the directory with the disk; must not be written to
	Manifest   Manifest
}

// Manifest says what an image holds and what it was made from. It is manifest.json beside the tree.
type Manifest struct {
	Format       int               `json:"format"` // 1
	Key          string            `json:"key"`
	Digest       string            `json:"digest"`
	Definition   Definition        `json:"definition"`
	Architecture string            `json:"architecture"` // as the distribution calls it: amd64
	ImageFormat  bed.ImageFormat   `json:"imageFormat"`
	Roles        []string          `json:"roles"`
	Inputs       map[string]string `json:"inputs"`    // path under playbooks/ → sha256 of each file that goes in
	Artifacts    []Artifact        `json:"artifacts"` // what roles built
	Flux         *FluxManifest     `json:"flux,omitempty"`
	// Kubernetes is what the bundle's node container holds.
	Kubernetes *KubernetesManifest `json:"kubernetes,omitempty"`
	Packages   []Package           `json:"packages"`
	Lists      Kept                `json:"lists"`            // of packages, as the archive had them: a tar archive
	Mirror     string              `json:"mirror,omitempty"` // as Store.Mirror was; the image's list of sources names it
	Epoch      time.Time           `json:"epoch"`            // when the newest package was made; no file is younger
	Files      int                 `json:"files"`            // entries of the tree, of any type
	Bytes      int64               `json:"bytes"`            // in regular files
	Disk       map[string]File     `json:"disk,omitempty"`   // what a VM image is, by file name
	Tools      map[string]string   `json:"tools"`            // versions of what baked it
	// Baked and Timings tell of this bake alone; nothing depends on them.
	Baked   time.Time          `json:"baked"`
	Timings map[string]float64 `json:"timings"` // seconds by stage
}

// Package is one installed package.
type Package struct {
	Name         string `json:"name"`
	Version      string `json:"version"`
	Architecture string `json:"architecture"`
	SHA256       string `json:"sha256"` // of the .deb, which is Kept
}

// Kept is a file from outside that a bake needs: packages/<definition>/<sha256>/<file> in the store.
type Kept struct {
	File   string `json:"file"`
	SHA256 string `json:"sha256"`
}

// FluxManifest is the Flux of an image.
type FluxManifest struct {
	Source  string `json:"source"`
	Digest  string `json:"digest"`  // of the artifact as it was given, or of the container image
	Version string `json:"version"` // what flux version prints
	Kept    Kept   `json:"kept"`    // a tar archive
}

// KubernetesManifest is what is in a bundle.
type KubernetesManifest struct {
	Bundle   string            `json:"bundle,omitempty"`   // digest of the image whose tree is the node's container; empty for that one
	MLServer string            `json:"mlServer,omitempty"` // digest of the image whose tree is the container of the service in it
	Module   map[string]string `json:"module"`             // digests of the Go module's files, or of container images by their pins' names
	Versions map[string]string `json:"versions"`           // by program
	Images   map[string]string `json:"images"`             // digests of container images, by name
}

// File is one file of a VM image.
type File struct {
	SHA256 string `json:"sha256"`
	Bytes  int64  `json:"bytes"`
}

// Artifact is what a role built for the image.
type Artifact struct {
	Role   string `json:"role"`
	Key    string `json:"key"`    // of everything that went in
	SHA256 string `json:"sha256"` // of artifacts/<key>.tar in the store
	Source string `json:"source"` // source package and version
	// What it was built from: the source package's files, and all packages of the tree it was built in.
	Sources  []Kept    `json:"sources"`
	Packages []Package `json:"packages"`
}

// Store is a directory of images. Its methods are safe for concurrent use, by several processes too.
type Store struct {
	// Mirror is the archive to fetch from instead of the tools' default; Open takes it from BEDFELLOW_MIRROR. It is no input of
	// the key: packages are signed.
	Mirror string
	// Elsewhere, if set, bakes VM images where this host cannot: without mmdebstrap or root, as on macOS.
	Elsewhere Elsewhere
	// Over, if set, names the machines whose disk lies over the one at path, also those that are not running.
	Over func(path string) []string

	dir  string
	bake func(ctx context.Context, b *bakery) error // a test's stand-in
}

// Open opens the store in dir, or in DefaultDir() when dir is empty. It makes nothing on disk.
func Open(dir string) (*Store, error) {
	if dir == "" {
		dir = DefaultDir()
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	return &Store{Mirror: os.Getenv("BEDFELLOW_MIRROR"), dir: dir, bake: bake}, nil
}

// Dir is the store's directory.
func (s *Store) Dir() string { return s.dir }

// Get finds the image of a request without making it, and says whether there is one. It reads little and needs no network.
func (s *Store) Get(ctx context.Context, req Request) (Image, bool, error) {
	if req.Format == bed.Raw {
		req.Format = bed.VM
		img, ok, err := s.Get(ctx, req)
		if !ok || err != nil {
			return Image{}, false, err
		}
		img, ok = s.rawOf(img)
		return img, ok, nil
	}
	r, err := req.resolve()
	if err != nil {
		return Image{}, false, err
	}
	key, _, err := r.key(playbooks.FS)
	if err != nil {
		return Image{}, false, err
	}
	img, err := s.load(key)
	if errors.Is(err, fs.ErrNotExist) {
		return Image{}, false, nil
	}
	return img, err == nil, err
}

// List lists every image there is, by definition and time of baking.
func (s *Store) List(ctx context.Context) ([]Image, error) {
	manifests, err := filepath.Glob(filepath.Join(s.dir, "*", "manifest.json"))
	if err != nil {
		return nil, err
	}
	var list []Image
	for _, path := range manifests {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		img, err := s.load(filepath.Base(filepath.Dir(path)))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		list = append(list, img)
	}
	slices.SortFunc(list, func(a, b Image) int {
		if c := strings.Compare(a.Definition, b.Definition); c != 0 {
			return c
		}
		return a.Manifest.Baked.Compare(b.Manifest.Baked)
	})
	return list, nil
}

// Remove deletes the image with that digest. One that nodes run on is ErrInUse. Kept packages and artifacts stay; Prune
// removes those.
func (s *Store) Remove(ctx context.Context, digest string) error {
	img, err := s.find(ctx, digest)
	if err != nil {
		return err
	}
	lock, err := s.lock(ctx, img.Key)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := s.remove(img.Key); err != nil {
		return fmt.Errorf("removing image %s: %w", digest, err)
	}
	return nil
}

// remove removes an image unless nodes run on it. Its lock is held.
func (s *Store) remove(key string) error {
	nodes, err := mountsOf(filepath.Join(s.dir, key, string(bed.Tree)))
	if err != nil {
		return err
	}
	disk := filepath.Join(s.dir, key, string(bed.VM), bed.DiskFile)
	if s.Over != nil {
		nodes = append(nodes, s.Over(disk)...)
	}
	nodes = append(nodes, holdersOf(disk)...)
	if len(nodes) > 0 {
		return fmt.Errorf("%w: %s; `bed sweep` lists the beds of this host; take that one down with `bed destroy -s STACK` or `bed sweep --delete --owner BED`",
			ErrInUse, strings.Join(nodes, ", "))
	}
	if err := removeTree(s.bakeDir(key)); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(s.bakeDir(key)), 0o755); err != nil {
		return err
	}
	// Renamed first, so that a removal that is cut short leaves a bake to sweep and no image with holes.
	if err := os.Rename(filepath.Join(s.dir, key), s.bakeDir(key)); err != nil {
		return err
	}
	return removeTree(s.bakeDir(key))
}

// find looks an image up by its digest, with or without "sha256:", or the start of it.
func (s *Store) find(ctx context.Context, digest string) (Image, error) {
	list, err := s.List(ctx)
	if err != nil {
		return Image{}, err
	}
	want := "sha256:" + strings.TrimPrefix(digest, "sha256:")
	var found []Image
	for _, img := range list {
		if len(want) > len("sha256:") && strings.HasPrefix(img.Digest, want) {
			found = append(found, img)
		}
	}
	if len(found) == 0 {
		return Image{}, fmt.Errorf("image %s in %s: %w; `bed image list` shows what there is", digest, s.dir, ErrNotFound)
	}
	if len(found) > 1 && found[0].Digest != found[len(found)-1].Digest {
		return Image{}, fmt.Errorf("image %s in %s: %d images start like that; give more of the digest", digest, s.dir, len(found))
	}
	return found[0], nil
}

func (s *Store) load(key string) (Image, error) {
	path := filepath.Join(s.dir, key, "manifest.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return Image{}, err
	}
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil || m.Key != key || m.Digest == "" {
		return Image{}, fmt.Errorf("%w: the manifest.json in %s does not read (%v); `bed image prune` removes the image, and the next bake makes it anew", errDamaged, filepath.Dir(path), err)
	}
	if m.ImageFormat == "" { // of a version that had no other
		m.ImageFormat = bed.Tree
	}
	return Image{
		Key: key, Digest: m.Digest, Definition: m.Definition.Name, Format: m.ImageFormat, Roles: m.Roles, Manifest: m,
		Path: filepath.Join(s.dir, key, string(m.ImageFormat)),
	}, nil
}
