package images

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// removed are the paths, as patterns under the tree, that are secret, tell who or when, or only helped the bake.
var removed = []string{
	// identity and secrets
	"etc/ssh/ssh_host_*", "etc/munge/munge.key", "var/lib/systemd/random-seed", "var/lib/systemd/credential.secret", "var/lib/dbus/machine-id",
	// the bake's own
	"usr/sbin/policy-rc.d", "etc/apt/apt.conf.d/99mmdebstrap", "etc/dpkg/dpkg.cfg.d/99mmdebstrap", "etc/dpkg/dpkg.cfg.d/98bedfellow", "root/.ansible", "root/.cache",
	"tmp/*", "tmp/.*", "var/tmp/*", "run/*", "dev/*", "etc/.pwd.lock",
	// manuals
	"usr/share/man/*", "usr/share/locale/*",
	// caches and former versions
	// Which packages came for others' sake is noted differently by versions of the tools; without the note none is ever taken away by itself.
	"var/lib/apt/extended_states*",
	"var/lib/apt/lists/*", "var/cache/apt/*", "var/cache/debconf/*-old", "var/cache/ldconfig/aux-cache",
	"var/lib/dpkg/*-old", "etc/passwd-", "etc/shadow-", "etc/group-", "etc/gshadow-", "etc/subuid-", "etc/subgid-",
}

// written are the files that are the same in every image.
var written = map[string]string{
	"etc/machine-id":  "", // empty, not missing: systemd makes one at every node's first boot, without taking it for an installation
	"etc/hostname":    "localhost\n",
	"etc/hosts":       "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
	"etc/resolv.conf": "",
	// No older than /usr: what systemd does at the first boot after an update was done by the packages.
	"etc/.updated": "", "var/.updated": "",
}

// clean takes out of a tree what no image may hold and what differs from bake to bake, and sets younger times to epoch.
func clean(tree string, epoch time.Time) error {
	for _, pattern := range removed {
		paths, err := filepath.Glob(filepath.Join(tree, pattern))
		if err != nil {
			return err
		}
		for _, path := range paths {
			if err := os.RemoveAll(path); err != nil {
				return fmt.Errorf("cleaning the tree: %w", err)
			}
		}
	}
	for name, content := range written {
		path := filepath.Join(tree, name)
		// Removed first: it may be a link that leads out of the tree.
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cleaning the tree: %w", err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return fmt.Errorf("cleaning the tree: %w", err)
		}
		if err := os.Chmod(path, 0o644); err != nil {
			return fmt.Errorf("cleaning the tree: %w", err)
		}
	}
	if dir := filepath.Join(tree, "var/lib/dbus"); exists(dir) {
		if err := os.Symlink("/etc/machine-id", filepath.Join(dir, "machine-id")); err != nil {
			return fmt.Errorf("cleaning the tree: %w", err)
		}
	}
	if err := edit(filepath.Join(tree, "etc/apt/sources.list"), func(line string) (string, bool) {
		return line, !strings.HasPrefix(line, "deb-src ")
	}); err != nil {
		return err
	}
	day := fmt.Sprint(epoch.Unix() / 86400)
	if err := edit(filepath.Join(tree, "etc/shadow"), func(line string) (string, bool) {
		f := strings.Split(line, ":")
		if len(f) > 2 && f[2] != "" && f[2] != "0" {
			f[2] = day // of the last password change
		}
		return strings.Join(f, ":"), true
	}); err != nil {
		return err
	}
	return clamp(tree, epoch)
}

// edit changes a file line by line; a line may be dropped. The file keeps its owner and mode. One that is missing stays so.
func edit(path string, change func(string) (string, bool)) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cleaning the tree: %w", err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(data)) {
		if line, keep := change(strings.TrimSuffix(line, "\n")); keep {
			out.WriteString(line + "\n")
		}
	}
	if err := os.WriteFile(path, []byte(out.String()), 0); err != nil {
		return fmt.Errorf("cleaning the tree: %w", err)
	}
	return nil
}

// clamp removes logs and all documentation but licences, and sets every time that is younger than epoch to it.
func clamp(tree string, epoch time.Time) error {
	logs, docs := filepath.Join(tree, "var/log")+"/", filepath.Join(tree, "usr/share/doc")+"/"
	var dirs []string
	set := func(path string) error {
		info, err := os.Lstat(path)
		if err != nil || info.ModTime().Unix() < epoch.Unix() {
			return err
		}
		ts := unix.NsecToTimespec(epoch.UnixNano())
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	}
	err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			dirs = append(dirs, path)
			return nil
		case strings.HasPrefix(path, logs), strings.HasPrefix(path, docs) && d.Name() != "copyright":
			return os.Remove(path)
		}
		return set(path)
	})
	if err != nil {
		return fmt.Errorf("cleaning the tree: %w", err)
	}
	for _, dir := range dirs { // after what is in them
		if err := set(dir); err != nil {
			return fmt.Errorf("cleaning the tree: %w", err)
		}
	}
	return nil
}
