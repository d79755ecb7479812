package images

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/bedfellow/bedfellow/playbooks"
)

// kubernetesRole is baked into the tree of the container that is a Kubernetes node. The tree is an image of its own, the offline
// bundle: what is on it besides distribution packages is built from the Go module that a Request names, or taken from what upstream has
// published of it.
const kubernetesRole = "kubernetes"

// bundleDefinition is the distribution of the node container, whatever the node's is.
const bundleDefinition = "debian-13"

// ErrNoBundle says that there is nothing to build Kubernetes from, or no tool for it.
var ErrNoBundle = errors.New("no Kubernetes to put on the image")

// KubernetesEnv names the Go module that the bundle is built from, or is KubernetesPinned.
const KubernetesEnv = "BEDFELLOW_KUBERNETES"

// BundleHelp says how to name what Kubernetes comes from.
const BundleHelp = "run it in a clone of Bedfellow, whose folder images/kubernetes is the Go module that Kubernetes is built from; or have it taken from " +
	"upstream's container images, where those can be reached: " + KubernetesEnv + "=" + KubernetesPinned

// Bundle asks for the tree of the node container, with Kubernetes from there; see Request.
func Bundle(kubernetes string) Request {
	return Request{Definition: bundleDefinition, Roles: []string{kubernetesRole}, Kubernetes: kubernetes}
}

// imagePrefix is where the container images would be pulled from, if they were ever pulled.
const imagePrefix = "localhost/bedfellow/"

// program is one that the bundle builds.
type program struct {
	name  string
	pkg   string // of Go, within the bundle's module
	dir   string // of the module within the bundle's that it is built in
	mod   string // that its version is of; empty for one of ours
	image bool   // goes into a container image of its own, otherwise onto the node
	// tree says that the image needs the distribution's programs under it too.
	tree       bool
	entrypoint bool // the image runs it; otherwise a pod says what runs
}

// pauseVersion is the tag that this Kubernetes' kubeadm asks for.
const pauseVersion = "3.10.1"

const kubernetesModule = "k8s.io/kubernetes"

var programs = []program{
	{name: "kubeadm", pkg: kubernetesModule + "/cmd/kubeadm", mod: kubernetesModule},
	{name: "kubectl", pkg: kubernetesModule + "/cmd/kubectl", mod: kubernetesModule},
	{name: "kubelet", pkg: kubernetesModule + "/cmd/kubelet", mod: kubernetesModule},
	{name: "pause", pkg: "./cmd/pause", image: true, entrypoint: true},
	{name: "etcd", pkg: "go.etcd.io/etcd/server/v3", mod: "go.etcd.io/etcd/server/v3", image: true},
	{name: "kube-apiserver", pkg: kubernetesModule + "/cmd/kube-apiserver", mod: kubernetesModule, image: true},
	{name: "kube-controller-manager", pkg: kubernetesModule + "/cmd/kube-controller-manager", mod: kubernetesModule, image: true},
	{name: "kube-scheduler", pkg: kubernetesModule + "/cmd/kube-scheduler", mod: kubernetesModule, image: true},
	{name: "coredns", pkg: "./cmd/coredns", mod: "github.com/coredns/coredns", image: true, entrypoint: true},
	{name: "kube-proxy", pkg: kubernetesModule + "/cmd/kube-proxy", mod: kubernetesModule, image: true, tree: true},
	{name: "flanneld", pkg: ".", dir: flannelDir, mod: flannelModule, image: true, tree: true, entrypoint: true},
}

const (
	flannelModule = "github.com/flannel-io/flannel"
	flannelDir    = "flannel"
)

// treePackages are those of the node's packages whose programs kube-proxy and Flannel call, and what those need; and for tests of
// networks, iperf3 and busybox.
var treePackages = []string{
	"busybox-static", "iperf3", "iptables", "libc6", "libgcc-s1", "libgmp10", "libip4tc2", "libip6tc2", "libiperf0", "libjansson4",
	"libmnl0", "libnetfilter-conntrack3", "libnfnetlink0", "libnftables1", "libnftnl11", "libreadline8t64", "libsctp1", "libssl3t64", "libtinfo6",
	"libxtables12", "libzstd1", "netbase", "nftables", "openssl-provider-legacy", "zlib1g",
}

// kubernetes puts Kubernetes on the node container's tree: its programs, and what runs as containers in containerd's store.
func (b *bakery) kubernetes(ctx context.Context, tree string) error {
	a, versions, err := b.programs(ctx)
	if err != nil {
		return fmt.Errorf("%w: building it: %w", ErrNoBundle, err)
	}
	b.m.Artifacts = append(b.m.Artifacts, a)
	defer b.stage("container images")()
	bin := filepath.Join(b.dir, "programs")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	if _, err := b.run(ctx, []string{"tar", "-C", bin, "--no-same-owner", "-xf", b.artifactPath(a.Key)}); err != nil {
		return err
	}
	for _, p := range programs {
		if p.image {
			continue
		}
		if _, err := b.run(ctx, []string{"install", "-m", "0755", filepath.Join(bin, p.name), filepath.Join(tree, "usr/bin", p.name)}); err != nil {
			return err
		}
	}
	archives := filepath.Join(b.dir, "images")
	if err := os.Mkdir(archives, 0o755); err != nil {
		return err
	}
	b.m.Kubernetes = &KubernetesManifest{Module: b.kubernetesSums, Versions: versions, Images: map[string]string{}}
	if from := b.recipe.kubernetes; from != "" {
		if b.m.Kubernetes.Module, err = kubernetesSums(from); err != nil {
			return err
		}
	}
	if err := b.containerImages(ctx, tree, bin, archives); err != nil {
		return fmt.Errorf("making the container images: %w", err)
	}
	if err := b.mlServer(ctx, archives); err != nil {
		return fmt.Errorf("making the container image of the service: %w", err)
	}
	// What kubeadm has to be told, for its own defaults are upstream's names.
	about := "repository=" + strings.TrimSuffix(imagePrefix, "/") + "\nkubernetes=" + versions["kubeadm"] + "\n"
	for _, program := range []string{"coredns", "etcd", "flanneld"} {
		about += program + "=" + versions[program] + "\n"
	}
	if err := os.WriteFile(filepath.Join(tree, "etc/kubernetes/bundle.env"), []byte(about), 0o644); err != nil {
		return err
	}
	return b.importImages(ctx, tree, archives)
}

// programs builds the bundle's programs, or finds them built: under the key of the module's files and the compiler. It says which
// version of what they are. A replay takes what is kept: the module cache that a build needs is not the store's.
func (b *bakery) programs(ctx context.Context) (Artifact, map[string]string, error) {
	if b.replay != nil {
		return b.keptPrograms()
	}
	if b.recipe.kubernetes == KubernetesPinned {
		defer b.stage("fetch kubernetes")()
		return b.publishedPrograms(ctx)
	}
	defer b.stage("build kubernetes")()
	src := filepath.Join(b.dir, "go")
	if err := os.CopyFS(src, os.DirFS(b.recipe.kubernetes)); err != nil {
		return Artifact{}, nil, err
	}
	versions, modules := map[string]string{"pause": pauseVersion}, map[string]string{}
	for _, p := range programs {
		if p.mod != "" && modules[p.mod] == "" {
			out, err := b.golang(ctx, "-C", filepath.Join(src, p.dir), "list", "-m", "-f", "{{.Version}}", p.mod)
			if err != nil {
				return Artifact{}, nil, err
			}
			modules[p.mod] = strings.TrimSpace(out)
		}
		if p.mod != "" {
			versions[p.name] = modules[p.mod]
		}
	}
	compiler, err := b.golang(ctx, "version")
	if err != nil {
		return Artifact{}, nil, err
	}
	files, err := moduleFiles(src)
	if err != nil {
		return Artifact{}, nil, err
	}
	a := Artifact{
		Role: kubernetesRole, Key: digestOf("programs", bakeVersion, files, strings.TrimSpace(compiler)),
		Source: "kubernetes " + modules[kubernetesModule] + " by its Go module",
	}
	lock, err := b.store.lock(ctx, "artifact-"+a.Key)
	if err != nil {
		return Artifact{}, nil, err
	}
	defer lock.Close()
	if kept, ok := b.store.keptArtifact(a.Key); ok {
		return kept, versions, nil
	}
	if err := b.flannelMain(ctx, filepath.Join(src, flannelDir)); err != nil {
		return a, nil, err
	}
	bin := filepath.Join(b.dir, "built")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return a, nil, err
	}
	// As upstream's own build stamps them; the time is that of nobody.
	stamp := "-s -w -buildid="
	version := modules[kubernetesModule]
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		for k, v := range map[string]string{
			"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
		} {
			stamp += " -X " + pkg + "." + k + "=" + v
		}
	}
	stamp += " -X " + flannelModule + "/pkg/version.Version=" + modules[flannelModule]
	build := func(dir string) error {
		argv := []string{"-C", filepath.Join(src, dir), "build", "-trimpath", "-buildvcs=false", "-ldflags", stamp, "-o", bin + "/"}
		for _, p := range programs {
			if p.dir == dir {
				argv = append(argv, p.pkg)
			}
		}
		_, err := b.golang(ctx, argv...)
		return err
	}
	stop := b.remind(ctx, "build Kubernetes, etcd, CoreDNS and Flannel")
	defer stop()
	for _, dir := range []string{"", flannelDir} {
		if err := build(dir); err != nil {
			return a, nil, err
		}
	}
	// Go calls a program after the last part of its package's path that is no version.
	for from, to := range map[string]string{"server": "etcd", "flannel": "flanneld"} {
		if err := os.Rename(filepath.Join(bin, from), filepath.Join(bin, to)); err != nil {
			return a, nil, err
		}
	}
	return a, versions, b.keepArtifact(ctx, &a, bin)
}

// remind says every quarter of a minute what has been going on for how long, until stop is called.
func (b *bakery) remind(ctx context.Context, what string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	start := time.Now()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(15 * time.Second):
				b.step.Update("%s: %s", what, time.Since(start).Round(time.Second))
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

// keptPrograms finds the programs of the bake that this one replays, where its own artifacts are.
func (b *bakery) keptPrograms() (Artifact, map[string]string, error) {
	for _, a := range b.replay.Artifacts {
		if a.Role != kubernetesRole {
			continue
		}
		kept, ok := b.store.keptArtifact(a.Key)
		if !ok {
			break
		}
		return kept, b.replay.Kubernetes.Versions, os.Link(b.store.artifactPath(a.Key), b.artifactPath(a.Key))
	}
	return Artifact{}, nil, fmt.Errorf("%w: its programs are no longer in the store", ErrCannotRebake)
}

// golang runs Go's command with the caller's settings, but none that would take another module or compiler in.
func (b *bakery) golang(ctx context.Context, args ...string) (string, error) {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "GOGC=") }) // meant for Pulumi's CLI, see stacks/engine
	env = append(env, "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-mod=readonly", "GOOS=linux", "GOTOOLCHAIN=local",
		"GOARCH="+runtime.GOARCH, "GOAMD64=v1", "GOARM64=v8.0", "GOEXPERIMENT=", "GOFIPS140=off", // which are not in the programs' key
		"GOTMPDIR="+b.dir) // what a killed one leaves goes with the bake
	return b.runWith(ctx, env, append([]string{"go"}, args...))
}

// flannelMain puts Flannel's main.go into the module that is there for it.
func (b *bakery) flannelMain(ctx context.Context, dir string) error {
	out, err := b.golang(ctx, "-C", dir, "mod", "download", "-json", flannelModule)
	if err != nil {
		return err
	}
	var mod struct{ Dir string }
	if err := json.Unmarshal([]byte(out), &mod); err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(mod.Dir, "main.go"))
	if err != nil {
		return err
	}
	if data, err = withoutBackends(data); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "main.go"), data, 0o644)
}

// withoutBackends is Flannel's main.go without the two backends that need a cloud's library and a C compiler.
func withoutBackends(data []byte) ([]byte, error) {
	for _, backend := range []string{"tencentvpc", "udp"} {
		line := "\t_ \"" + flannelModule + "/pkg/backend/" + backend + "\"\n"
		without := bytes.Replace(data, []byte(line), nil, 1)
		if len(without) == len(data) {
			return nil, fmt.Errorf("Flannel's main.go imports no backend %s: this version is another than images/kubernetes/flannel is written for", backend)
		}
		data = without
	}
	return data, nil
}

// containerImages writes an archive per container image, named in the order of their import.
func (b *bakery) containerImages(ctx context.Context, tree, bin, to string) error {
	base, err := b.treeLayer(ctx, tree)
	if err != nil {
		return err
	}
	write := func(i int, program, version string, config v1.Config, layers ...v1.Layer) error {
		img, err := mutate.AppendLayers(empty.Image, layers...)
		if err != nil {
			return err
		}
		config.Env = []string{containerPath}
		if img, err = configured(img, config); err != nil {
			return err
		}
		digest, err := img.Digest()
		if err != nil {
			return err
		}
		tag, err := name.NewTag(imagePrefix + program + ":" + version)
		if err != nil {
			return err
		}
		b.m.Kubernetes.Images[tag.Name()] = digest.String()
		return tarball.WriteToFile(filepath.Join(to, fmt.Sprintf("%02d-%s.tar", i, program)), tag, img)
	}
	for i, p := range programs {
		if !p.image {
			continue
		}
		data, err := os.ReadFile(filepath.Join(bin, p.name))
		if err != nil {
			return err
		}
		var out bytes.Buffer
		at := "/usr/local/bin/" + p.name
		if err := writeMembers(&out, map[string]memberFile{at: {&tar.Header{Typeflag: tar.TypeReg, Mode: 0o755}, data}}); err != nil {
			return err
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(out.Bytes())), nil })
		if err != nil {
			return err
		}
		var config v1.Config
		if p.entrypoint {
			config.Entrypoint = []string{at}
		}
		layers := []v1.Layer{layer}
		if p.tree {
			layers = []v1.Layer{base, layer}
		}
		if err := write(i, p.name, b.m.Kubernetes.Versions[p.name], config, layers...); err != nil {
			return err
		}
	}
	return write(len(programs), "tools", "1", v1.Config{Cmd: []string{"/bin/busybox", "sh"}}, base)
}

// configured is an image with a configuration, for this processor and made at no time.
func configured(img v1.Image, config v1.Config) (v1.Image, error) {
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.Architecture, file.OS, file.Config, file.History = runtime.GOARCH, "linux", config, nil
	return mutate.ConfigFile(img, file)
}

// treeLayer is a layer of some of the tree's packages. Their alternatives are links that no package has.
func (b *bakery) treeLayer(ctx context.Context, tree string) (v1.Layer, error) {
	out, err := b.run(ctx, append([]string{"chroot", tree, "dpkg-query", "-L"}, treePackages...))
	if err != nil {
		return nil, err
	}
	paths := map[string]bool{"bin": true, "sbin": true, "lib": true, "lib64": true}
	for _, dir := range []string{"etc/alternatives", "usr/sbin"} {
		for _, pattern := range []string{"iptables*", "ip6tables*"} {
			found, err := filepath.Glob(filepath.Join(tree, dir, pattern))
			if err != nil {
				return nil, err
			}
			for _, path := range found {
				paths[strings.TrimPrefix(path, tree+"/")] = true
			}
		}
	}
	for line := range strings.Lines(out) {
		path := strings.TrimPrefix(strings.TrimSpace(line), "/")
		// By the tree's own names: packages still have some files in /lib, which is a link.
		for _, top := range []string{"bin", "sbin", "lib", "lib64"} {
			if path == top || strings.HasPrefix(path, top+"/") {
				path = "usr/" + path
			}
		}
		if info, err := os.Lstat(filepath.Join(tree, path)); err != nil || strings.HasPrefix(path, "usr/share/doc") || path == "." || path == "" {
			continue
		} else if !info.IsDir() {
			paths[path] = true
		}
	}
	list := filepath.Join(b.dir, "layer.list")
	if err := os.WriteFile(list, []byte(strings.Join(slices.Sorted(maps.Keys(paths)), "\n")+"\n"), 0o644); err != nil {
		return nil, err
	}
	layer := filepath.Join(b.dir, "layer.tar")
	if _, err := b.run(ctx, []string{
		"tar", "-C", tree, "--no-recursion", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu", "-cf", layer, "-T", list,
	}); err != nil {
		return nil, err
	}
	return tarball.LayerFromFile(layer)
}

// importImages has the tree's own containerd take the archives into its store, and makes that the same whenever they are.
func (b *bakery) importImages(ctx context.Context, tree, archives string) error {
	debs, err := b.cache("import")
	if err != nil {
		return err
	}
	script, err := fs.ReadFile(playbooks.FS, "roles/"+kubernetesRole+"/files/import-images")
	if err != nil {
		return err
	}
	if _, err := b.run(ctx, b.contained(`archives=$1 script=$2; shift 2
		set -- "$@"; tree=$1
		mkdir -p "$tree/mnt/images"; mount --bind "$archives" "$tree/mnt/images"; set -- "$@" chroot "$tree" /bin/sh -euc "$script"
		`+enterTree, archives, string(script), tree, debs)); err != nil {
		return err
	}
	return canonicalStore(filepath.Join(tree, "var/lib/containerd"))
}
