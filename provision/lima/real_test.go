package lima_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/hosttest"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/drivertest"
	"github.com/bedfellow/bedfellow/provision/lima"
)

// The tests below are on the real limactl and QEMU. BEDFELLOW_LIMA_IMAGE is a directory with a VM image. They boot some twenty machines:
// with emulated CPUs give them -timeout 120m.

// realImage finds the image to boot, or says what is missing.
func realImage(t *testing.T) string {
	if testing.Short() {
		t.Skip("boots machines")
	}
	image := os.Getenv("BEDFELLOW_LIMA_IMAGE")
	if image == "" {
		t.Skip("boots some twenty machines, which take an hour where they are emulated: BEDFELLOW_LIMA_IMAGE=<directory of a VM image> asks for it, as `make e2e-full` does; " +
			"`make e2e` brings up a bed of the real ones")
	}
	realLima(t)
	return image
}

// realLima says what of Lima is missing.
func realLima(t *testing.T) {
	for _, command := range []string{"limactl", "qemu-system-x86_64", "qemu-img"} {
		if _, err := exec.LookPath(command); err != nil {
			hosttest.Lacks(t, command)
		}
	}
	if os.Geteuid() == 0 {
		if _, err := user.Lookup(lima.Account); err != nil {
			hosttest.Lacks(t, "the user "+lima.Account)
		}
	}
}

// shortRoot is a directory for beds whose path leaves room for sockets, and which other users may enter.
func shortRoot(t *testing.T) string {
	dir, err := os.MkdirTemp("", "bl")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	return dir
}

func TestReal(t *testing.T) {
	image := realImage(t)
	root := shortRoot(t)
	drivertest.Suite{
		Open:  func(*testing.T) provision.Driver { return lima.New(root) },
		Image: image, ImageDigest: "sha256:of-the-test", Bed: "conf", Timeout: 20 * time.Minute, Many: 2, Seen: time.Minute,
		Kill:   func(t *testing.T, name string) { killNamed(t, filepath.Join(root, "conf"), name, "qemu-system") },
		Census: func(t *testing.T) []string { return census(t, root) },
	}.Run(t)
}

// A bake in a virtual machine: BEDFELLOW_LIMA_IMAGE's disk stands in for the cloud image, which it is like: it has cloud-init and a boot
// loader. The image has one role, for where CPUs are emulated a compiler would be at work for hours.
func TestRealBake(t *testing.T) {
	image := realImage(t)
	server := httptest.NewServer(http.FileServer(http.Dir(image)))
	defer server.Close()
	data, err := os.ReadFile(filepath.Join(image, bed.DiskFile))
	require.NoError(t, err)
	dir, root := t.TempDir(), shortRoot(t)
	require.NoError(t, images.Lock{{
		Name: "cloud-image/debian-13/" + runtime.GOARCH, Source: server.URL + "/" + bed.DiskFile, Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(data)),
	}}.Write(filepath.Join(dir, images.LockFile)))
	t.Setenv(images.LockEnv, filepath.Join(dir, images.LockFile))
	t.Setenv(images.BakeEnv, "vm")
	command := filepath.Join(dir, "bed")
	out, err := exec.Command("go", "build", "-o", command, "github.com/bedfellow/bedfellow/cmd/bed").CombinedOutput()
	require.NoError(t, err, "%s", out)
	kept := shortRoot(t) // which the account that runs Lima may read
	store, err := images.Open(kept)
	require.NoError(t, err)
	store.Elsewhere = lima.Baker{Driver: lima.New(root), Store: store, Command: command, CPUs: 2, Memory: 4 * bed.GiB}.Bake
	sink, done := progress.Display(os.Stderr)
	defer done()
	img, err := store.Build(progress.With(t.Context(), sink), images.Request{Definition: "debian-13", Format: bed.VM, Roles: []string{"base"}})
	require.NoError(t, err)
	require.Empty(t, census(t, root), "left of the machine that baked")
	require.NoError(t, store.Verify(t.Context(), img.Digest, false))

	here, err := images.Open(t.TempDir())
	require.NoError(t, err)
	same, err := here.Build(t.Context(), images.Request{Definition: "debian-13", Format: bed.VM, Roles: []string{"base"}})
	require.NoError(t, err)
	require.Equal(t, same.Digest, img.Digest, "the same as baked on this host")
}

// killNamed kills those processes of a node whose command has the word, and waits until they are gone.
func killNamed(t *testing.T, home, node, word string) {
	killed := 0
	for _, pid := range lima.Processes(home, node) {
		command, err := os.ReadFile(filepath.Join("/proc", itoa(pid), "cmdline"))
		if err == nil && strings.Contains(strings.ReplaceAll(string(command), "\x00", " "), word) {
			require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
			killed++
			require.Eventually(t, func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }, 5*time.Second, 5*time.Millisecond)
		}
	}
	require.Positive(t, killed, "no process of %s is a %s", node, word)
}

// census lists what beds under a root have on the host: files and processes.
func census(t *testing.T, root string) []string {
	var found []string
	entries, err := os.ReadDir(root)
	require.NoError(t, err)
	for _, e := range entries {
		if e.IsDir() {
			found = append(found, "directory "+e.Name())
		}
	}
	out, _ := exec.Command("pgrep", "-af", root).Output()
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		if line != "" {
			found = append(found, "process "+line)
		}
	}
	return found
}
