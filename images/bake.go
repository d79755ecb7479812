package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/bedfellow/bedfellow/pkg/ansible"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/playbooks"
)

// bake fills the bake's tree and manifest: base system, then roles and what they build side by side.
func bake(ctx context.Context, b *bakery) error {
	if err := b.store.preflight(b.recipe); err != nil {
		return err
	}
	var bundle Image
	if slices.Contains(b.roles, usernetesRole) {
		var err error
		if bundle, err = b.bundle(ctx); err != nil {
			return err
		}
	}
	if err := b.base(ctx); err != nil {
		return b.explain(err)
	}
	tree := filepath.Join(b.dir, "tree")
	if _, err := b.run(ctx, b.contained(`cp -a --reflink=auto "$1" "$2"`, filepath.Join(b.dir, "base"), tree)); err != nil {
		return err
	}
	artifacts := make([]Artifact, 0, len(b.roles))
	err := together(ctx,
		func(ctx context.Context) error { return b.playbook(ctx, "bake", tree, "roles", b.roles, nil) },
		func(ctx context.Context) error {
			for _, role := range b.roles {
				a, ok, err := b.artifact(ctx, role)
				if err != nil {
					return fmt.Errorf("building %s: %w", role, err)
				}
				if ok {
					artifacts = append(artifacts, a)
				}
			}
			return nil
		})
	if err != nil {
		return b.explain(err)
	}
	done := b.stage("unpack and clean")
	defer done()
	b.m.Artifacts = artifacts
	for _, a := range artifacts {
		if _, err := b.run(ctx, b.contained(`tar -C "$1" --no-overwrite-dir -xpf "$2"`, tree, b.artifactPath(a.Key))); err != nil {
			return fmt.Errorf("unpacking what %s built: %w", a.Role, err)
		}
	}
	if b.art.Digest != "" {
		if err := b.flux(ctx, tree); err != nil {
			return err
		}
	}
	if slices.Contains(b.roles, kubernetesRole) {
		if err := b.kubernetes(ctx, tree); err != nil {
			return err
		}
	}
	if bundle.Path != "" {
		if err := b.loadNode(ctx, tree, bundle); err != nil {
			return fmt.Errorf("loading the Kubernetes node's container: %w", err)
		}
	}
	if b.m.Packages, b.m.Epoch, err = b.packages(ctx, tree, "base", "roles"); err != nil {
		return err
	}
	arch, err := b.run(ctx, []string{"chroot", tree, "dpkg", "--print-architecture"})
	if err != nil {
		return err
	}
	b.m.Architecture = strings.TrimSpace(arch)
	b.m.Tools = toolVersions(ctx, b.dir)
	if b.format == bed.VM {
		if err := b.bootable(ctx, tree, b.m.Epoch); err != nil {
			return err
		}
	}
	return clean(tree, b.m.Epoch)
}

const noManuals = `path-exclude=/usr/share/man/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
`

// base makes the distribution's smallest system that Ansible can work in. Its package lists stay for the stages that follow.
func (b *bakery) base(ctx context.Context) error {
	defer b.stage("base")()
	tree := filepath.Join(b.dir, "base")
	debs, err := b.cache("base")
	if err != nil {
		return err
	}
	keyring, err := b.keyring(ctx)
	if err != nil {
		return err
	}
	argv := []string{
		"mmdebstrap", "--mode=root", "--format=directory", "--variant=apt", "--include=python3,python3-apt",
		"--components=" + strings.Join(b.def.Components, ","),
		"--skip=download/empty,essential/unlink,cleanup/apt",
		`--aptopt=APT::Keep-Downloaded-Packages "true"`, `--aptopt=APT::Install-Recommends "false"`, `--aptopt=Acquire::Languages "none"`,
		// Without it, mmdebstrap on a host of another distribution writes into the image where it found the keys.
		"--keyring=" + keyring,
		`--aptopt=Acquire::Retries "2"`, `--aptopt=Acquire::http::Timeout "20"`,
		"--dpkgopt=force-unsafe-io", // a bake that is cut short is thrown away
		// Roles build from source packages; one line per source, before the lists are fetched.
		`--setup-hook=sed -i -E 's/^deb (.*)/deb \1\ndeb-src \1/' "$1/etc/apt/sources.list"`,
		`--setup-hook=mkdir -p "$1/var/cache/apt/archives" && mount --bind ` + shellQuote(debs) + ` "$1/var/cache/apt/archives"`,
	}
	b.m.Mirror = b.store.Mirror
	if b.replay != nil {
		b.m.Mirror = b.replay.Mirror
		argv = append(argv, "--skip=update", `--setup-hook=tar -C "$1/var/lib/apt/lists" -xf `+shellQuote(b.keptPath(b.replay.Lists)))
	}
	argv = append(argv, b.def.Suite, tree)
	if b.m.Mirror != "" {
		argv = append(argv, b.m.Mirror)
	}
	// What a killed mmdebstrap leaves is in the bake's directory, not in /tmp.
	if _, err := b.run(ctx, b.contained(`export TMPDIR=$1; shift; exec "$@"`, append([]string{b.dir}, argv...)...)); err != nil {
		return err
	}
	if err := errors.Join(b.keep(debs), b.keepLists(ctx, tree)); err != nil {
		return err
	}
	// Nodes need no manuals. mmdebstrap could leave them out too, but then unpacks at a third of the speed; clean removes those.
	if err := os.WriteFile(filepath.Join(tree, "etc/dpkg/dpkg.cfg.d/98bedfellow"), []byte(noManuals), 0o644); err != nil {
		return err
	}
	// No service starts in a tree: neither at installation nor at an upgrade.
	policy := filepath.Join(tree, "usr/sbin/policy-rc.d")
	if err := os.WriteFile(policy, []byte("#!/bin/sh\nexit 101\n"), 0o755); err != nil {
		return err
	}
	return os.Chmod(policy, 0o755)
}

// playbook runs the roles' entry point in a tree.
func (b *bakery) playbook(ctx context.Context, entry, tree, name string, roles []string, vars map[string]any) error {
	defer b.stage(name)()
	debs, err := b.cache(name)
	if err != nil {
		return err
	}
	extra := map[string]any{"bed_roles": roles, "bed_definition": b.def.Name}
	for k, v := range vars {
		extra[k] = v
	}
	_, err = ansible.Run{
		Playbooks: playbooks.FS,
		Playbook:  entry + ".yml",
		Inventory: map[string]any{"all": map[string]any{"hosts": map[string]any{"image": map[string]any{
			"ansible_connection": "community.general.chroot", "ansible_host": tree,
		}}}},
		ExtraVars: extra,
		Prefix:    b.contained(enterTree, tree, debs),
		Env:       environment(),
		Files:     []*os.File{b.lock.File},
		Step:      fmt.Sprintf("%s %s: %s", entry, b.def.Name, strings.Join(roles, ", ")),
		Enter:     "the tree of a failed bake is removed",
	}.Do(ctx)
	if err != nil {
		return err
	}
	return b.keep(debs)
}

// together runs functions side by side. The first error ends the others and is the one returned.
func together(ctx context.Context, fns ...func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	for _, fn := range fns {
		wg.Go(func() {
			if err := fn(ctx); err != nil {
				once.Do(func() { first = err; cancel(err) })
			}
		})
	}
	wg.Wait()
	return first
}

// explain adds to an error of an archive that does not answer what can be done. Programs tell of it in text only.
func (b *bakery) explain(err error) error {
	if b.replay != nil {
		return err // nobody was asked
	}
	text := err.Error()
	for _, sign := range []string{
		"Could not resolve", "Temporary failure resolving", "Could not connect", "Unable to connect", "Connection failed",
		"Connection timed out", "Connection refused", "Network is unreachable", "No route to host", "does not have a Release file",
	} {
		if strings.Contains(text, sign) {
			return fmt.Errorf("%w; try `apt-get update` on this host; behind a proxy, export http_proxy; to use another mirror, export BEDFELLOW_MIRROR=<its URL>: %w", ErrNoArchive, err)
		}
	}
	return err
}

// toolVersions are the versions of what baked an image. Asked for its own, Ansible makes a directory in its home, which is home here.
func toolVersions(ctx context.Context, home string) map[string]string {
	versions := map[string]string{}
	for _, tool := range []string{"mmdebstrap", "ansible-playbook"} {
		cmd := exec.CommandContext(ctx, tool, "--version")
		cmd.Env = append(environment(), "ANSIBLE_HOME="+filepath.Join(home, "ansible"))
		if out, err := cmd.Output(); err == nil {
			versions[tool], _, _ = strings.Cut(string(out), "\n")
		}
	}
	return versions
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
