package images

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
)

// rawOf is the VM image with its disk as a raw file beside it; false where that was not written yet.
func (s *Store) rawOf(vm Image) (Image, bool) {
	vm.Format, vm.Path = bed.Raw, filepath.Join(filepath.Dir(vm.Path), string(bed.Raw))
	_, err := os.Stat(filepath.Join(vm.Path, bed.RawFile))
	return vm, err == nil
}

// writeRaw writes the VM image's disk as a raw file, with holes where it is empty. It goes with the image.
func (s *Store) writeRaw(ctx context.Context, vm Image) (_ Image, err error) {
	step := progress.Start(ctx, "write %s as a raw disk", vm.Definition)
	defer func() { step.EndWith("", err) }()
	lock, err := s.lockWith(ctx, vm.Key, syscall.LOCK_EX, func() { step.Update("waiting for another who writes it") })
	if err != nil {
		return Image{}, err
	}
	defer lock.Close()
	img, ok := s.rawOf(vm)
	if ok {
		return img, nil
	}
	if err := os.MkdirAll(img.Path, 0o755); err != nil {
		return Image{}, err
	}
	part := filepath.Join(img.Path, bed.RawFile+".part") // one that a kill left is written over
	cmd := exec.CommandContext(ctx, "qemu-img", "convert", "-O", "raw", filepath.Join(vm.Path, bed.DiskFile), part)
	if out, err := cmd.CombinedOutput(); err != nil {
		_ = os.Remove(part)
		return Image{}, fmt.Errorf("write %s as a raw disk: %w: %s", vm.Definition, err, strings.TrimSpace(string(out)))
	}
	return img, os.Rename(part, filepath.Join(img.Path, bed.RawFile))
}
