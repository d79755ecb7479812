package nspawn

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// What `ip netns` and systemd-nspawn make on a host at their first use, and never remove. It goes with the last bed if the first
// one brought it, and if nobody else uses it by then.

// runDirs lists them, each before those that hold it.
func runDirs() []string {
	return []string{"/run/systemd/nspawn/locks", "/run/systemd/nspawn/propagate", "/run/systemd/nspawn/unix-export", "/run/systemd/nspawn", netnsDir}
}

// netnsMount stands in their list for what `ip netns` makes of its directory, also of one that was there already.
const netnsMount = "mount " + netnsDir

// mounted says whether something is mounted at a path.
func mounted(path string) bool {
	data, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == path {
			return true
		}
	}
	return false
}

func (d *Driver) hostFile() string { return filepath.Join(d.root, "host.json") }

// noteHost writes down what the host lacks before its first bed. The caller holds the lock.
func (d *Driver) noteHost() error {
	if _, err := os.Stat(d.hostFile()); err == nil {
		return nil
	}
	var absent []string
	for _, dir := range runDirs() {
		if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
			absent = append(absent, dir)
		}
	}
	if !mounted(netnsDir) {
		absent = append(absent, netnsMount)
	}
	return writeJSON(d.hostFile(), absent)
}

// restoreHost undoes that after the last bed. The caller holds the lock; what is in use stays.
func (d *Driver) restoreHost() {
	absent, _ := readJSON[[]string](d.hostFile()) // without it nothing is known to be ours
	_ = os.Remove(d.hostFile())
	if os.Remove(d.root) != nil {
		return
	}
	for _, dir := range runDirs() {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			continue
		}
		ours := slices.Contains(absent, dir)
		if dir == netnsDir && (ours || slices.Contains(absent, netnsMount)) {
			_ = syscall.Unmount(dir, 0) // it is mounted on itself
		}
		if ours {
			_ = os.Remove(dir)
		}
	}
}
