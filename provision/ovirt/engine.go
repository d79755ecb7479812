package ovirt

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	ovirtsdk "github.com/ovirt/go-ovirt"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
)

// create asks for something to be made, and returns its id. Whenever it is not known whether that was done, look tells: it returns the id of
// what is there, or none. A request that is under way when the context ends is waited for, or nobody would know what to take away.
func (c *client) create(ctx context.Context, path string, body []byte, look func(context.Context) (string, error)) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.timing.retry, fmt.Errorf("not within %s", c.timing.retry))
	defer cancel()
	var uncertain *uncertainError
	var last error // with all that the engine has said, uncertain or not
	for pause := c.timing.pause; ctx.Err() == nil; pause = min(2*pause, c.timing.most) {
		answer, err := c.post(ctx, path, body)
		if err == nil {
			return rootID(answer), nil
		}
		refused := !errors.As(err, &uncertain)
		if refused && uncertain == nil {
			return "", err
		}
		if last = err; refused {
			last = errors.Join(uncertain, err)
		}
		// What was made by a request whose answer was lost may be there now, or soon, and is refused the second time.
		if !sleep(ctx, pause) {
			return "", errors.Join(context.Cause(ctx), last)
		}
		id, errLook := look(ctx)
		if errLook != nil || id != "" {
			return id, errLook
		}
		if refused && pause >= c.timing.most {
			return "", err
		}
	}
	return "", errors.Join(context.Cause(ctx), last)
}

// ensure is create for what may be there already, which the engine may refuse.
func (c *client) ensure(ctx context.Context, path string, body []byte, look func(context.Context) (string, error)) error {
	_, err := c.create(ctx, path, body, look)
	if err != nil {
		if id, errLook := look(ctx); errLook == nil && id != "" {
			return nil
		}
	}
	return err
}

// post is a call that the context's end does not cut short.
func (c *client) post(ctx context.Context, path string, body []byte) ([]byte, error) {
	under, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), c.timing.retry, fmt.Errorf("not within %s", c.timing.retry))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(c.timing.request/4, cancel) })
	defer stop()
	return c.call(under, http.MethodPost, path, nil, body)
}

// rootID is the id of an answer's object, of whatever kind.
func rootID(answer []byte) string {
	var root struct {
		ID string `xml:"id,attr"`
	}
	_ = xml.Unmarshal(answer, &root) // an action has none
	return root.ID
}

// byName looks for something by its name in a collection.
func byName[S any, T identified](c *client, path string, query url.Values, name string, read func(*ovirtsdk.XMLReader, *xml.StartElement) (*S, error), slice func(*S) []T) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		data, err := c.call(ctx, http.MethodGet, path, query, nil)
		all, err := many(data, err, read)
		if err != nil {
			return "", err
		}
		for _, have := range list(slice(all)) {
			if have.name == name {
				return have.id, nil
			}
		}
		return "", nil
	}
}

// change puts what the builder has into a VM.
func (c *client) change(ctx context.Context, id string, b *ovirtsdk.VmBuilder) error {
	body, err := written(b.MustBuild(), ovirtsdk.XMLVmWriteOne)
	if err != nil {
		return err
	}
	_, err = c.call(ctx, http.MethodPut, "/vms/"+id, nil, body)
	return err
}

// vm is a VM by its id; nil when there is none any more.
func (c *client) vm(ctx context.Context, id string) (*ovirtsdk.Vm, ovirtsdk.VmStatus, error) {
	data, err := c.call(ctx, http.MethodGet, "/vms/"+id, nil, nil)
	vm, err := one(data, err, ovirtsdk.XMLVmReadOne)
	if notFound(err) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	said, _ := vm.Status()
	return vm, said, nil
}

// alone looks at a VM alone.
func alone(ctx context.Context, c *client, id string) (*ovirtsdk.Vm, ovirtsdk.VmStatus, error) {
	return c.vm(ctx, id)
}

// awaitVM waits until a VM has a status, which it has not at once.
func (c *client) awaitVM(ctx context.Context, id, what string, want ovirtsdk.VmStatus, look func(context.Context, *client, string) (*ovirtsdk.Vm, ovirtsdk.VmStatus, error)) (vm *ovirtsdk.Vm, err error) {
	ctx, cancel := c.remaining(ctx, what)
	defer cancel()
	var said ovirtsdk.VmStatus
	if !sleep(ctx, c.timing.poll*3/2) {
		return nil, context.Cause(ctx)
	}
	err = c.until(ctx, func(ctx context.Context) (bool, error) {
		vm, said, err = look(ctx, c, id)
		if err == nil && vm == nil {
			err = errors.New("somebody has removed its VM meanwhile")
		}
		return said == want, err
	})
	if err != nil {
		err = fmt.Errorf("wait for it to %s: %w (the engine says that it is %s)", what, err, said)
	}
	return vm, err
}

// action is the body of an action that has no parameters.
func action() []byte { return []byte("<action/>") }

// stop switches a VM off, whatever it is doing, and waits until that is so.
func (c *client) stop(ctx context.Context, id string) error {
	ctx, cancel := c.remaining(ctx, "stop it")
	defer cancel()
	return c.until(ctx, func(ctx context.Context) (bool, error) {
		vm, said, err := c.vm(ctx, id)
		if err != nil || vm == nil || said == ovirtsdk.VMSTATUS_DOWN {
			return true, err
		}
		if said == ovirtsdk.VMSTATUS_IMAGE_LOCKED {
			return false, nil
		}
		// To be stopped twice is to be stopped.
		_, err = c.call(ctx, http.MethodPost, "/vms/"+id+"/stop", nil, action())
		var fault *Fault
		var uncertain *uncertainError
		if errors.As(err, &uncertain) || errors.As(err, &fault) && fault.Status == http.StatusConflict {
			err = nil // it may be down by now
		}
		return false, err
	})
}

// remove stops a VM, removes it with its disks, and waits until it is gone.
func (c *client) remove(ctx context.Context, id string) error {
	if err := c.stop(ctx, id); err != nil {
		return err
	}
	ctx, cancel := c.remaining(ctx, "remove it")
	defer cancel()
	asked := false
	return c.until(ctx, func(ctx context.Context) (bool, error) {
		if !asked {
			_, err := c.call(ctx, http.MethodDelete, "/vms/"+id, nil, nil)
			asked = true
			return notFound(err), ignoreNotFound(err)
		}
		vm, said, err := c.vm(ctx, id)
		if said == ovirtsdk.VMSTATUS_DOWN { // the engine has given it up
			asked = false
		}
		return vm == nil && err == nil, err
	})
}

func ignoreNotFound(err error) error {
	if notFound(err) {
		return nil
	}
	return err
}

// bootDisk is the disk that a VM or a template, by its path, boots from.
func (c *client) bootDisk(ctx context.Context, path string) (bootDisk, error) {
	data, err := c.call(ctx, http.MethodGet, path+"/diskattachments", url.Values{"follow": {"disk"}}, nil)
	attached, err := many(data, err, ovirtsdk.XMLDiskAttachmentReadMany)
	if err != nil {
		return bootDisk{}, err
	}
	disk := bootDiskOf(attached.Slice())
	if disk.attachment == "" {
		return disk, errors.New("it has no disk to boot from")
	}
	return disk, nil
}

// grow makes a VM's disk as large as that.
func (c *client) grow(ctx context.Context, id string, disk bootDisk, size bed.Size) error {
	body, err := written(ovirtsdk.NewDiskAttachmentBuilder().Disk(ovirtsdk.NewDiskBuilder().ProvisionedSize(int64(size)).MustBuild()).MustBuild(), ovirtsdk.XMLDiskAttachmentWriteOne)
	if err != nil {
		return err
	}
	// A VM that is started while the disk still grows is refused for that, and started again.
	_, err = c.call(ctx, http.MethodPut, "/vms/"+id+"/diskattachments/"+disk.attachment, nil, body)
	return err
}

// awaitDisk waits until a disk is not locked any more.
func (c *client) awaitDisk(ctx context.Context, id string) error {
	ctx, cancel := c.remaining(ctx, "make the disk")
	defer cancel()
	return c.until(ctx, func(ctx context.Context) (bool, error) {
		data, err := c.call(ctx, http.MethodGet, "/disks/"+id, nil, nil)
		disk, err := one(data, err, ovirtsdk.XMLDiskReadOne)
		if err != nil {
			return false, err
		}
		said, _ := disk.Status()
		if said == ovirtsdk.DISKSTATUS_ILLEGAL {
			return false, fmt.Errorf("the engine says that disk %s is illegal: what it was doing with it has failed; see its events", id)
		}
		return said == ovirtsdk.DISKSTATUS_OK, nil
	})
}

// Owners lists the marks of all beds that the engine shows this user. A bed of which only what its nodes shared is left has a mark without
// a state.
func (d *Driver) Owners(ctx context.Context) ([]provision.Owner, error) {
	c, err := d.connected(ctx)
	if err != nil {
		return nil, err
	}
	all, err := d.List(ctx, "")
	if err != nil {
		return nil, err
	}
	owners := provision.OwnersOf(all)
	tags, groups, err := d.marked(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, of := range []map[string]string{tags, groups} {
		for bedName := range of {
			if !slices.ContainsFunc(owners, func(o provision.Owner) bool { return o.Bed == bedName }) {
				owners = append(owners, provision.Owner{Bed: bedName})
			}
		}
	}
	return owners, nil
}

// Sweep removes what is left of a bed: VMs that were never finished, its tag and its affinity group.
func (d *Driver) Sweep(ctx context.Context, owner provision.Owner) error {
	left, err := d.List(ctx, owner.Bed)
	if err != nil {
		return err
	}
	for _, st := range left {
		if st.Owner.State != "" && !st.Owner.Same(owner) {
			return &provision.ForeignError{Have: st.Owner, Want: owner}
		}
	}
	for _, st := range left {
		if err := d.Delete(ctx, st.Name); err != nil {
			return err
		}
	}
	return errors.Join(d.unlabel(ctx, owner.Bed), d.ClearUploads(ctx))
}

// clearNICs removes the network interfaces that a VM has of its template.
func (c *client) clearNICs(ctx context.Context, id string) error {
	path := "/vms/" + id + "/nics"
	data, err := c.call(ctx, http.MethodGet, path, nil, nil)
	nics, err := many(data, err, ovirtsdk.XMLNicReadMany)
	if err != nil {
		return err
	}
	for _, nic := range nics.Slice() {
		if _, err := c.call(ctx, http.MethodDelete, path+"/"+idOf(nic), nil, nil); ignoreNotFound(err) != nil {
			return err
		}
	}
	return nil
}
