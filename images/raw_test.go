package images

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/hosttest"
)

// The raw disk is the VM image's, byte for byte; it is written once, and over what a killed one has left.
func TestRawDiskIsTheImages(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		hosttest.Lacks(t, "qemu-img, which writes disks")
	}
	s := fakeStore(t)
	vm := Image{Key: "key", Definition: "debian-12", Format: bed.VM, Path: filepath.Join(s.dir, "key", string(bed.VM))}
	require.NoError(t, os.MkdirAll(vm.Path, 0o755))
	disk := make([]byte, 8<<20)
	copy(disk[5<<20:], bytes.Repeat([]byte("bed"), 1<<18))
	from := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(from, disk, 0o600))
	out, err := exec.Command("qemu-img", "convert", "-O", "qcow2", from, filepath.Join(vm.Path, bed.DiskFile)).CombinedOutput()
	require.NoError(t, err, string(out))

	img, there := s.rawOf(vm)
	assert.False(t, there)
	require.NoError(t, os.MkdirAll(img.Path, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(img.Path, bed.RawFile+".part"), bytes.Repeat([]byte("left"), 4<<20), 0o600))
	_, there = s.rawOf(vm)
	assert.False(t, there, "what is half written is not there")
	img, err = s.writeRaw(t.Context(), vm)
	require.NoError(t, err)
	assert.Equal(t, bed.Raw, img.Format)
	got, err := os.ReadFile(filepath.Join(img.Path, bed.RawFile))
	require.NoError(t, err)
	assert.True(t, bytes.Equal(disk, got), "%d bytes for %d", len(got), len(disk))

	require.NoError(t, os.Remove(filepath.Join(vm.Path, bed.DiskFile)))
	again, err := s.writeRaw(t.Context(), vm)
	require.NoError(t, err, "nothing is written a second time")
	assert.Equal(t, img, again)
	require.NoError(t, os.RemoveAll(img.Path))
	_, err = s.writeRaw(t.Context(), vm)
	assert.ErrorContains(t, err, bed.DiskFile)
}
