package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/hosttest"
	"github.com/bedfellow/bedfellow/stacks/engine"
)

const uefi = "/usr/share/OVMF/OVMF_CODE_4M.fd"

// TestDiskBootsByItself: the disk of a VM image alone, without its kernel beside it, comes to a login under a BIOS and under UEFI, as
// oVirt and OpenStack start it. That is every such image that is kept here, and the stack's at least.
func TestDiskBootsByItself(t *testing.T) {
	if *stackFlag == "quickstart" {
		t.Skip("its image is a tree; with -stack lima-ci this looks at disks")
	}
	for _, need := range []string{"qemu-system-x86_64", uefi} {
		if _, err := exec.LookPath(need); err != nil {
			if _, err := os.Stat(need); err != nil {
				hosttest.Lacks(t, need)
			}
		}
	}
	p := newPlace(t, "firmware", *stackFlag, "e2e-fw")
	w, err := engine.Open(p.dir, p.stack, nil)
	require.NoError(t, err)
	spec, err := w.Spec()
	require.NoError(t, err)
	store, err := images.Open("")
	require.NoError(t, err)
	for _, def := range images.Definitions() {
		t.Run(def.Name, func(t *testing.T) {
			img, kept, err := store.Get(t.Context(), images.Request{Definition: def.Name, Format: bed.VM})
			require.NoError(t, err)
			if !kept && def.Name != spec.Image {
				t.Skipf("not baked here, and minutes to bake: `bed image build %s --format vm` first", def.Name)
			}
			require.True(t, kept, "the bed of the stack came up from it")
			for name, firmware := range map[string][]string{"BIOS": nil, "UEFI": {"-drive", "if=pflash,format=raw,readonly=on,file=" + uefi}} {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					login(t, filepath.Join(img.Path, bed.DiskFile), firmware)
				})
			}
		})
	}
}

// login starts a machine from a disk, to which nothing is written, and waits for its prompt on the serial console.
func login(t *testing.T, disk string, firmware []string) {
	const limit = 8 * time.Minute // emulated, with another beside it
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	console := filepath.Join(t.TempDir(), "console")
	// Emulated everywhere: what boots is the same, and a KVM that opens may run no guest.
	argv := append([]string{"-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-m", "1024", "-display", "none", "-monitor", "none",
		"-snapshot", "-drive", "file=" + disk + ",if=virtio", "-serial", "file:" + console, "-nic", "none"}, firmware...)
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", argv...)
	var said bytes.Buffer
	cmd.Stderr = &said
	require.NoError(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	var text []byte
	eventually(t, "a login on "+disk, limit, func() error {
		text, _ = os.ReadFile(console)
		if !bytes.Contains(text, []byte("login:")) {
			return fmt.Errorf("the console ends with %q; QEMU said %q", text[max(0, len(text)-300):], said.String())
		}
		return nil
	})
}
