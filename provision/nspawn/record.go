package nspawn

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
)

// What is known of beds and nodes lies beside their disks, written before anything is made, so that whatever a killed run has
// left can be found and removed without any Pulumi state:
//
//	<root>/<bed>/bed.json
//	<root>/<bed>/<node>/{node.json,upper,work,root,console.log}

// bedRecord is what a bed's nodes share.
type bedRecord struct {
	Owner   provision.Owner `json:"owner"`
	Subnet  netip.Prefix    `json:"subnet"`
	Network string          `json:"network"`
}

// nodeRecord is one node. Ready is written last: a node without it is half made.
type nodeRecord struct {
	Owner         provision.Owner `json:"owner"`
	Index         int             `json:"index"`
	Digest        string          `json:"digest"`
	Address       netip.Addr      `json:"address"`
	HostPublicKey string          `json:"hostPublicKey"`
	Incarnation   string          `json:"incarnation"`
	HostCPUs      []int           `json:"hostCPUs"` // empty: not pinned
	Expires       time.Time       `json:"expires"`
	Ready         bool            `json:"ready"`
	// RootInode of the node's root file system, which names nspawn's lock file.
	RootInode string `json:"rootInode,omitempty"`
}

func (d *Driver) bedDir(bedName string) string        { return filepath.Join(d.root, bedName) }
func (d *Driver) nodeDir(bedName, node string) string { return filepath.Join(d.root, bedName, node) }

func (d *Driver) readBed(bedName string) (bedRecord, error) {
	return readJSON[bedRecord](filepath.Join(d.bedDir(bedName), "bed.json"))
}

func (d *Driver) readNode(bedName, node string) (nodeRecord, error) {
	return readJSON[nodeRecord](filepath.Join(d.nodeDir(bedName, node), "node.json"))
}

func (d *Driver) writeNode(bedName, node string, r nodeRecord) error {
	defer d.forgetUse()
	return writeJSON(filepath.Join(d.nodeDir(bedName, node), "node.json"), r)
}

// beds lists the beds on this host; nodes those of a bed. Directories without a record count: somebody was killed there.
func (d *Driver) beds() []string { return subdirectories(d.root) }

func (d *Driver) nodes(bedName string) []string { return subdirectories(d.bedDir(bedName)) }

func subdirectories(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

// bedOf finds which bed has a node of that name.
func (d *Driver) bedOf(node string) (string, bool) {
	for _, b := range d.beds() {
		if _, err := os.Stat(d.nodeDir(b, node)); err == nil {
			return b, true
		}
	}
	return "", false
}

func readJSON[T any](path string) (T, error) {
	var v T
	data, err := os.ReadFile(path)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return v, fmt.Errorf("read %s: %w", path, err)
	}
	return v, nil
}

// writeJSON replaces the file in one step.
func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// lock serialises changes to what nodes share: subnets, CPUs, a bed's network. The lock is on the directory of all beds, which
// it makes, and ends with its holder.
func (d *Driver) lock() (unlock func(), err error) {
	for {
		if err := os.MkdirAll(d.root, 0o700); err != nil {
			return nil, err
		}
		f, err := os.Open(d.root)
		if errors.Is(err, os.ErrNotExist) {
			continue // removed with the last bed just now
		}
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			_ = f.Close()
			if errors.Is(err, syscall.EINTR) {
				continue
			}
			return nil, fmt.Errorf("lock %s: %w", d.root, err)
		}
		held, errHeld := f.Stat()
		there, errThere := os.Stat(d.root)
		if errHeld == nil && errThere == nil && os.SameFile(held, there) {
			return func() { _ = f.Close() }, nil
		}
		_ = f.Close() // what was locked is no longer the directory
	}
}

// allotCPUs chooses host CPUs for a compute node: those that the fewest other nodes run on. The control node computes nothing
// and floats.
func (d *Driver) allotCPUs(m provision.Machine) []int {
	if m.Role == bed.Control {
		return nil
	}
	use, online := d.cpuUse(), hostCPUs()
	sort.SliceStable(online, func(i, j int) bool { return use[online[i]] < use[online[j]] })
	cpus := online[:min(m.CPUs, len(online))]
	sort.Ints(cpus)
	return cpus
}

// shared tells whether more than one node, of any bed, runs on one of the host CPUs.
func (d *Driver) shared(cpus []int) bool {
	use := d.cpuUse()
	return slices.ContainsFunc(cpus, func(c int) bool { return use[c] > 1 })
}

// cpuUse counts the nodes on each host CPU. It reads every record, and so no more than once a second.
func (d *Driver) cpuUse() map[int]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.use != nil && time.Since(d.used) < time.Second {
		return d.use
	}
	use := map[int]int{}
	for _, b := range d.beds() {
		for _, n := range d.nodes(b) {
			if r, err := d.readNode(b, n); err == nil {
				for _, c := range r.HostCPUs {
					use[c]++
				}
			}
		}
	}
	d.use, d.used = use, time.Now()
	return use
}

// forgetUse makes the next cpuUse read again.
func (d *Driver) forgetUse() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.use = nil
}

// hostCPUs lists the CPUs this process may run on.
func hostCPUs() []int {
	data, _ := os.ReadFile("/proc/self/status")
	for _, line := range strings.Split(string(data), "\n") {
		if list, ok := strings.CutPrefix(line, "Cpus_allowed_list:"); ok {
			return parseCPUs(strings.TrimSpace(list))
		}
	}
	return nil
}

// parseCPUs reads the kernel's list form: "0-2,5".
func parseCPUs(list string) []int {
	var cpus []int
	for _, part := range strings.Split(list, ",") {
		first, last, ranged := strings.Cut(part, "-")
		a, err := strconv.Atoi(first)
		if err != nil {
			continue
		}
		b := a
		if ranged {
			if b, err = strconv.Atoi(last); err != nil {
				continue
			}
		}
		for c := a; c <= b; c++ {
			cpus = append(cpus, c)
		}
	}
	return cpus
}

func formatCPUs(cpus []int) string {
	parts := make([]string, len(cpus))
	for i, c := range cpus {
		parts[i] = strconv.Itoa(c)
	}
	return strings.Join(parts, ",")
}
