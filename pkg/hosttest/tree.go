package hosttest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// DebianTree is a Debian 13 with packages, separated by commas, for what a test needs; the test is skipped where it cannot be made. The variable names
// one that is kept: one with these packages and without the hook has services that start faster.
func DebianTree(t *testing.T, variable, what, packages string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		Lacks(t, "root, who makes a Debian 13 for "+what)
	}
	if tree := os.Getenv(variable); tree != "" {
		return tree
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		Lacks(t, "mmdebstrap, which makes a Debian 13 for "+what)
	}
	tree := filepath.Join(t.TempDir(), "tree")
	out, err := exec.CommandContext(t.Context(), "mmdebstrap", "--quiet", "--variant=apt", "--dpkgopt=force-unsafe-io",
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		// Compiling all of Python's modules takes longer than compiling those that are used.
		`--essential-hook=chroot "$1" dpkg-divert --quiet --local --rename --add /usr/bin/py3compile; ln -s /bin/true "$1/usr/bin/py3compile"`,
		"--include="+packages, "trixie", tree).CombinedOutput()
	if err != nil {
		Lacks(t, "a Debian 13 for "+what+", which mmdebstrap did not get: "+string(out))
	}
	return tree
}
