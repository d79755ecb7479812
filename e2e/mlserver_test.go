package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/hosttest"
)

// TestMLServer holds the models of the workflow's service against batch references, and the service against kills and nonsense, in the tree
// that its container is made of.
func TestMLServer(t *testing.T) {
	if os.Geteuid() != 0 {
		hosttest.Lacks(t, "root")
	}
	store, err := images.Open("")
	require.NoError(t, err)
	img, err := store.Build(t.Context(), images.MLServer())
	require.NoError(t, err)
	script, err := filepath.Abs("testdata/ml_server_test.py")
	require.NoError(t, err)
	// The tree is the store's, and stays as it is: what the test writes goes into a file system of its own.
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", `
		mount -t tmpfs none "$1/tmp"; mount -t proc none "$1/proc"
		exec chroot "$1" env -i PATH=/usr/local/bin:/usr/bin:/bin LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 OPENBLAS_NUM_THREADS=1 python3 - <"$2"`, "sh", img.Path, script)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Logf("%s", out)
}
