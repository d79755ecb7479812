package images

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/bedfellow/bedfellow/playbooks"
)

// usernetesRole makes an image's machines nodes of Kubernetes without root. The node's container is loaded into the Docker of the bed's
// user at bake time.
const usernetesRole = "usernetes"

// nodeImage is what the node's container is called in Docker.
const nodeImage = imagePrefix + "node:1"

// bundle finds the bundle that the image's Kubernetes comes from, or builds it. A replay only finds it.
func (b *bakery) bundle(ctx context.Context) (Image, error) {
	if b.replay != nil {
		return b.kept(ctx, b.replay.Kubernetes.Bundle)
	}
	return b.store.Build(ctx, Bundle(b.recipe.kubernetes))
}

// kept finds the image of a container that a replay has in it.
func (b *bakery) kept(ctx context.Context, digest string) (Image, error) {
	img, err := b.store.find(ctx, digest)
	if errors.Is(err, ErrNotFound) {
		err = fmt.Errorf("%w: the image of a container in it is no longer in the store: %w", ErrCannotRebake, err)
	}
	return img, err
}

// loadNode puts the bundle's tree, as a container image, into the tree's rootless Docker.
func (b *bakery) loadNode(ctx context.Context, tree string, bundle Image) error {
	defer b.stage("load the Kubernetes node")()
	about := *bundle.Manifest.Kubernetes
	about.Bundle = bundle.Digest
	b.m.Kubernetes = &about
	dir := filepath.Join(b.dir, "node")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if _, err := b.containerArchive(ctx, bundle, filepath.Join(dir, "node.tar"), nodeImage, v1.Config{
		Entrypoint: []string{"/usr/local/bin/entrypoint"}, StopSignal: "SIGRTMIN+3", Env: []string{containerPath, "container=docker"},
	}); err != nil {
		return err
	}
	script, err := fs.ReadFile(playbooks.FS, "roles/"+usernetesRole+"/files/load-node")
	if err != nil {
		return err
	}
	// User namespaces are refused in a changed root, and so the tree becomes the root of the mount namespace.
	const pivot = `
dir=$1; shift
mkdir -p "$1/mnt/node" "$1/mnt/host"
mount --bind "$1" "$1"; mount --bind "$dir" "$1/mnt/node"
set -- "$@" /bin/sh -euc 'cd "$1"; pivot_root . mnt/host; exec chroot . /bin/sh -euc "umount -l /mnt/host; install -d -o 1000 -g 1000 /run/user/1000; exec setpriv --reuid 1000 --regid 1000 --clear-groups env HOME=/home/bed XDG_RUNTIME_DIR=/run/user/1000 /mnt/node/load /mnt/node/node.tar ` + nodeImage + `"' sh "$1"
`
	if err := os.WriteFile(filepath.Join(dir, "load"), script, 0o755); err != nil {
		return err
	}
	debs, err := b.cache("load")
	if err != nil {
		return err
	}
	_, err = b.run(ctx, b.contained(pivot+enterTree, dir, tree, debs))
	for _, mountPoint := range []string{"mnt/node", "mnt/host"} {
		_ = os.Remove(filepath.Join(tree, mountPoint))
	}
	return err
}

// containerPath is where programs are in containers.
const containerPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// containerArchive writes an image's tree as a container image that docker load and containerd take, and returns that one's digest.
func (b *bakery) containerArchive(ctx context.Context, from Image, to, called string, config v1.Config) (string, error) {
	layerFile := filepath.Join(b.dir, "layer.tar")
	if _, err := b.run(ctx, []string{
		"tar", "-C", from.Path, "--sort=name", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--format=posix",
		"--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime", "-cf", layerFile, ".",
	}); err != nil {
		return "", err
	}
	layer, err := tarball.LayerFromFile(layerFile, tarball.WithCompressionLevel(gzip.NoCompression))
	if err != nil {
		return "", err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return "", err
	}
	if img, err = configured(img, config); err != nil {
		return "", err
	}
	digest, err := img.Digest()
	if err != nil {
		return "", err
	}
	tag, err := name.NewTag(called)
	if err != nil {
		return "", err
	}
	if err := tarball.WriteToFile(to, tag, img); err != nil {
		return "", err
	}
	return digest.String(), os.Remove(layerFile)
}
