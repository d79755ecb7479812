package images

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
)

// kernelRole makes a tree that boots by itself.
const kernelRole = "kernel"

// diskTools are what making a disk runs on top of a bake's tools.
var diskTools = []Tool{
	{"mke2fs", "e2fsprogs"}, {"sfdisk", "fdisk"}, {"mformat", "mtools"}, {"mcopy", "mtools"}, {"qemu-img", "qemu-utils"},
}

// A disk has a partition each for the boot loader of a BIOS, that of UEFI, and the root file system, which comes last so that it
// grows with the disk. Nobody but a disk of ours has these identifiers, and every such disk has the same.
const (
	rootLabel = "bed-root"
	diskID    = "6265646e-6f64-4000-8000-00000000000"

	sector            = 512 // bytes
	biosStart         = 2048
	efiStart, efiSize = 4096, 16 << 20 / sector
	rootStart         = efiStart + efiSize
	tailSize          = 1 << 20 / sector // for the second partition table

	// A kernel that panics starts again, where it would stand for ever.
	commandLine = "root=LABEL=" + rootLabel + " rw quiet panic=10 console=tty0 console=ttyS0,115200"
)

// Architecture tells whether images of a format can be had for this host's processor.
func Architecture(format bed.ImageFormat) error {
	if format != bed.Tree && runtime.GOARCH != "amd64" {
		return fmt.Errorf("%w: disks are made for amd64 only, and this host is %s", ErrMissing, runtime.GOARCH)
	}
	return nil
}

// bootable readies a tree for the disk it will be on: an initial RAM disk that is the same in every bake, what the boot loader
// starts, the table of file systems.
func (b *bakery) bootable(ctx context.Context, tree string, epoch time.Time) error {
	debs, err := b.cache("kernel")
	if err != nil {
		return err
	}
	if _, err := b.run(ctx, b.contained(enterTree, tree, debs, "env", fmt.Sprintf("SOURCE_DATE_EPOCH=%d", epoch.Unix()),
		"chroot", tree, "update-initramfs", "-u", "-k", "all")); err != nil {
		return err
	}
	version, err := kernelVersion(tree)
	if err != nil {
		return err
	}
	config := fmt.Sprintf("linux /boot/vmlinuz-%[1]s %[2]s\ninitrd /boot/initrd.img-%[1]s\nboot\n", version, commandLine)
	return errors.Join(
		os.MkdirAll(filepath.Join(tree, "boot/grub"), 0o755),
		os.WriteFile(filepath.Join(tree, "boot/grub/grub.cfg"), []byte(config), 0o644),
		os.WriteFile(filepath.Join(tree, "etc/fstab"), []byte("LABEL="+rootLabel+" / ext4 defaults 0 1\n"), 0o644))
}

// kernelVersion is that of the one kernel in a tree.
func kernelVersion(tree string) (string, error) {
	found, err := filepath.Glob(filepath.Join(tree, "boot", "vmlinuz-*"))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("the tree has %d kernels in /boot, and one is wanted: %v", len(found), found)
	}
	return strings.TrimPrefix(filepath.Base(found[0]), "vmlinuz-"), nil
}

// disk makes the files of a VM image of the bake's tree, which may go then, and notes their digests.
func (b *bakery) disk(ctx context.Context) error {
	defer b.stage("disk")()
	tree, out := filepath.Join(b.dir, string(bed.Tree)), filepath.Join(b.dir, string(bed.VM))
	version, err := kernelVersion(tree)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	raw := filepath.Join(b.dir, "disk.raw")
	if err := b.fill(ctx, raw, tree); err != nil {
		return err
	}
	for _, argv := range [][]string{
		{"qemu-img", "convert", "-O", "qcow2", raw, filepath.Join(out, bed.DiskFile)},
		{"cp", filepath.Join(tree, "boot", "vmlinuz-"+version), filepath.Join(out, bed.KernelFile)},
		{"cp", filepath.Join(tree, "boot", "initrd.img-"+version), filepath.Join(out, bed.InitrdFile)},
	} {
		if _, err := b.run(ctx, argv); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(out, bed.CmdlineFile), []byte(commandLine), 0o644); err != nil {
		return err
	}
	b.m.Disk = map[string]File{}
	for _, name := range []string{bed.DiskFile, bed.KernelFile, bed.InitrdFile, bed.CmdlineFile} {
		path := filepath.Join(out, name)
		if err := os.Chmod(path, 0o644); err != nil { // an emulator need not be root
			return err
		}
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		sum, err := fileSum(path)
		if err != nil {
			return err
		}
		b.m.Disk[name] = File{SHA256: sum, Bytes: info.Size()}
	}
	return os.Remove(raw)
}

// fill makes a raw disk that boots and holds the tree.
func (b *bakery) fill(ctx context.Context, raw, tree string) error {
	// Room for the file system's own tables, and for the first minutes of a node whose disk did not grow.
	rootMiB := b.m.Bytes*13/10>>20 + 256
	rootSize := rootMiB << 20 / sector
	if err := os.WriteFile(raw, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(raw, (rootStart+rootSize+tailSize)*sector); err != nil {
		return err
	}
	table := fmt.Sprintf("label: gpt\nlabel-id: %s0\n", diskID)
	for i, p := range []struct {
		start, size int64
		kind        string
	}{
		{biosStart, efiStart - biosStart, "21686148-6449-6E6F-744E-656564454649"},
		{efiStart, efiSize, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"},
		{rootStart, rootSize, "0FC63DAF-8483-4772-8E79-3D69D8477DE4"},
	} {
		table += fmt.Sprintf("start=%d, size=%d, type=%s, uuid=%s%d\n", p.start, p.size, p.kind, diskID, i+1)
	}
	loader, err := b.loaders(ctx, tree)
	if err != nil {
		return err
	}
	efi := fmt.Sprintf("%s@@%d", raw, efiStart*sector)
	for _, argv := range [][]string{
		{"sh", "-euc", `printf %s "$1" | sfdisk --quiet "$2"`, "sh", table, raw},
		// The boot loader does not know the two features that newer tools would add.
		{"mke2fs", "-q", "-F", "-t", "ext4", "-L", rootLabel, "-U", diskID + "4", "-m", "1", "-O", "^metadata_csum_seed,^orphan_file", "-E",
			fmt.Sprintf("hash_seed=%s4,offset=%d", diskID, rootStart*sector), "-d", tree, raw, fmt.Sprintf("%dM", rootMiB)},
		{"mformat", "-i", efi, "-T", fmt.Sprint(efiSize), "-h", "64", "-s", "32", "-N", "62656401", "-v", "BED-EFI", "::"},
		{"mmd", "-i", efi, "::EFI", "::EFI/BOOT"},
		{"mcopy", "-m", "-i", efi, loader.efi, "::EFI/BOOT/BOOTX64.EFI"},
	} {
		if _, err := b.run(ctx, argv); err != nil {
			return err
		}
	}
	return loader.writeBIOS(raw)
}

// loaders are GRUB's parts, made by the tree's own GRUB.
type loaders struct {
	boot, core []byte // for a BIOS
	efi        string // path of the program
}

func (b *bakery) loaders(ctx context.Context, tree string) (l loaders, err error) {
	dir := filepath.Join(b.dir, "grub")
	script := `mkdir "$1/tmp/grub" "$2"
printf 'search --no-floppy --label %s --set root\nconfigfile ($root)/boot/grub/grub.cfg\n' "$3" >"$1/tmp/grub/early.cfg"
for target in i386-pc x86_64-efi; do
	case $target in i386-pc) own=biosdisk ;; *) own=fat ;; esac
	# Ubuntu's command linux hands over to linuxefi under UEFI; elsewhere there is no such module.
	if [ -e "$1/usr/lib/grub/$target/linuxefi.mod" ]; then own="$own linuxefi"; fi
	chroot "$1" grub-mkimage -O $target -o /tmp/grub/$target -c /tmp/grub/early.cfg -p /boot/grub $own part_gpt ext2 search search_label normal configfile linux
done
cp "$1/usr/lib/grub/i386-pc/boot.img" "$1"/tmp/grub/* "$2"`
	if _, err := b.run(ctx, b.contained(`mount -t tmpfs tmpfs "$1/tmp"; `+script, tree, dir, rootLabel)); err != nil {
		return l, err
	}
	if l.boot, err = os.ReadFile(filepath.Join(dir, "boot.img")); err != nil {
		return l, err
	}
	l.core, err = os.ReadFile(filepath.Join(dir, "i386-pc"))
	l.efi = filepath.Join(dir, "x86_64-efi")
	return l, errors.Join(err, os.Chtimes(l.efi, b.m.Epoch, b.m.Epoch))
}

// writeBIOS puts GRUB's first sector into the disk's, and the rest into the first partition, and tells each where the next lies,
// as grub-bios-setup does on a device. The places are those of GRUB's include/grub/i386/pc/boot.h and of a blocklist's one entry at
// the end of the core's first sector.
func (l loaders) writeBIOS(raw string) error {
	const (
		kernelSector, driveCheck = 0x5c, 0x66           // in boot.img
		firstBlock               = sector - 12          // in the core's first sector
		partitionTable           = 440                  // where the first sector's code ends
		room                     = efiStart - biosStart // sectors
	)
	if len(l.boot) != sector || len(l.core) < sector || len(l.core) > room*sector {
		return fmt.Errorf("GRUB's boot sector has %d bytes and its core %d, where %d and at most %d were expected", len(l.boot), len(l.core), sector, room*sector)
	}
	binary.LittleEndian.PutUint64(l.boot[kernelSector:], biosStart)
	copy(l.boot[driveCheck:], []byte{0x90, 0x90}) // believe the BIOS's number of the drive, which is right for a disk
	binary.LittleEndian.PutUint64(l.core[firstBlock:], biosStart+1)
	f, err := os.OpenFile(raw, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, errBoot := f.WriteAt(l.boot[:partitionTable], 0)
	_, errCore := f.WriteAt(l.core, biosStart*sector)
	return errors.Join(errBoot, errCore, f.Close())
}

// holdersOf lists the processes that hold a disk open: the machines that run on it.
func holdersOf(disk string) []string {
	var found []string
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		if at, err := os.Readlink(link); err == nil && at == disk {
			found = append(found, "process "+strings.Split(link, "/")[2])
		}
	}
	return slices.Compact(found)
}
