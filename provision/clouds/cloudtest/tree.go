// Package cloudtest has what stands in for clouds in tests: a tree with moto's server, and OpenStack's own services.
package cloudtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/hosttest"
)

// Tree is a Debian 13 with all of them, made in a directory or found there; the test is skipped where it cannot be made. BEDFELLOW_CLOUDS_TREE names
// one that is kept: one with these packages and without the hook has services that start faster.
func Tree(t *testing.T, dir string) string {
	t.Helper()
	const what = "a Debian 13 with moto's server and OpenStack's services"
	if os.Geteuid() != 0 {
		hosttest.Lacks(t, "root, who makes "+what)
	}
	if kept := os.Getenv("BEDFELLOW_CLOUDS_TREE"); kept != "" {
		return kept
	}
	tree := filepath.Join(dir, "tree")
	if _, err := os.Stat(tree); err == nil {
		return tree
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		hosttest.Lacks(t, "mmdebstrap, which makes "+what)
	}
	unfinished := tree + ".unfinished"
	require.NoError(t, os.RemoveAll(unfinished)) // of one that failed
	out, err := exec.CommandContext(t.Context(), "mmdebstrap", "--quiet", "--variant=apt", "--dpkgopt=force-unsafe-io",
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		// Compiling all of Python's modules takes longer than compiling those that are used.
		`--essential-hook=chroot "$1" dpkg-divert --quiet --local --rename --add /usr/bin/py3compile; ln -s /bin/true "$1/usr/bin/py3compile"`,
		"--include=python3-moto,python3-flask,python3-flask-cors,python3-keystone,python3-placement,glance-common,neutron-common,nova-common",
		"trixie", unfinished).CombinedOutput()
	if err != nil {
		hosttest.Lacks(t, what+", which mmdebstrap did not get: "+string(out))
	}
	require.NoError(t, os.Rename(unfinished, tree))
	return tree
}
