package nspawn

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/bedfellow/bedfellow/provision"
)

// Delete removes the node, and with the last one what the bed's nodes shared.
func (d *Driver) Delete(ctx context.Context, name string) error {
	bedName, ok := d.bedOf(name)
	if !ok {
		return nil
	}
	if err := d.removeNode(ctx, bedName, name); err != nil {
		return err
	}
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if len(d.nodes(bedName)) > 0 {
		return nil
	}
	return d.removeLast(ctx, bedName)
}

// Owners lists the marks of all beds here, those without a node included.
func (d *Driver) Owners(context.Context) ([]provision.Owner, error) {
	var owners []provision.Owner
	for _, b := range d.beds() {
		r, err := d.readBed(b)
		if err != nil { // killed before it was written: nobody's, but named
			r.Owner = provision.Owner{Bed: b}
		}
		owners = append(owners, r.Owner)
	}
	return owners, nil
}

// Sweep removes whatever there is of the bed, provided that it is the owner's.
func (d *Driver) Sweep(ctx context.Context, owner provision.Owner) error {
	if b, err := d.readBed(owner.Bed); err == nil && !b.Owner.Same(owner) {
		return &provision.ForeignError{Have: b.Owner, Want: owner}
	}
	for _, n := range d.nodes(owner.Bed) {
		if err := d.Delete(ctx, n); err != nil {
			return err
		}
	}
	if _, err := os.Stat(d.bedDir(owner.Bed)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return d.removeLast(ctx, owner.Bed)
}

// removeLast is removeBed at the end of an operation: with the last bed goes what all of them shared, their directory included. The
// lock is on that directory, so the caller does nothing more under it.
func (d *Driver) removeLast(ctx context.Context, bedName string) error {
	err := d.removeBed(ctx, bedName)
	if len(d.beds()) == 0 {
		d.groups.removeAll(ctx)
		d.restoreHost()
	}
	return err
}

// removeBed removes a bed without nodes. The caller holds the lock.
func (d *Driver) removeBed(ctx context.Context, bedName string) error {
	if err := removeBedNetwork(ctx, bedName); err != nil {
		return fmt.Errorf("remove the network of bed %s: %w", bedName, err)
	}
	if err := os.RemoveAll(d.bedDir(bedName)); err != nil {
		return err
	}
	return nil
}

// removeNode takes a node apart: processes, mount, links, groups, files. Each part may be missing.
func (d *Driver) removeNode(ctx context.Context, bedName, name string) error {
	dir := d.nodeDir(bedName, name)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	n, _ := d.readNode(bedName, name)
	ctx, cancel := context.WithTimeoutCause(ctx, deleteTimeout, fmt.Errorf("not within %s", deleteTimeout))
	defer cancel()
	if err := d.groups.kill(ctx, bedName, name); err != nil {
		return fmt.Errorf("remove node %s: %w", name, err)
	}
	root := filepath.Join(dir, "root")
	for { // a killed run may have mounted twice
		if err := syscall.Unmount(root, 0); errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOENT) {
			break
		} else if err != nil {
			return fmt.Errorf("unmount %s: %w (`fuser -vm %s` shows who uses it)", root, err, root)
		}
	}
	leftovers := []string{filepath.Join("/run/systemd/nspawn/propagate", name), filepath.Join("/run/systemd/nspawn/unix-export", name)}
	if n.RootInode != "" {
		leftovers = append(leftovers, filepath.Join("/run/systemd/nspawn/locks", n.RootInode))
	}
	var errs []error
	for _, path := range leftovers {
		_ = syscall.Unmount(path, syscall.MNT_DETACH) // newer versions of nspawn mount something there
		errs = append(errs, os.RemoveAll(path))
	}
	// The kernel takes a namespace's links apart when it comes to it; the bed's end must be gone before the next node's is made.
	_, _ = run(ctx, "ip", "-n", bedNS(bedName), "link", "del", port(n.Index))
	errs = append(errs, removeNS(ctx, nodeNS(name)), d.groups.remove(ctx, bedName, name))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove node %s: %w", name, err)
	}
	return os.RemoveAll(dir)
}
