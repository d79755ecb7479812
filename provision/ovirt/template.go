package ovirt

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	ovirtsdk "github.com/ovirt/go-ovirt"
	"golang.org/x/sys/unix"

	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/provision"
)

// aboutImage is the description of the template that an image has become in an engine.
func aboutImage(digest string) string { return "Bedfellow image " + digest }

// aboutUpload is that of what there is on the way there: a disk, and a VM that the template is made of. The engine gives a template's disks, and
// those of its VMs, the description and the name of the disk that it was made of; so nothing is removed for its description or its name.
const aboutUpload = "Bedfellow upload"

// imageName is what an image's template is called on a storage domain. An engine has a name once.
func imageName(digest, storageDomain string) string {
	short := func(text string, n int) string { return text[:min(n, len(text))] }
	return imagePrefix + short(strings.TrimPrefix(digest, "sha256:"), 16) + "-" + short(storageDomain, 8)
}

const imagePrefix = "bedfellow-image-"

// upload is what is known on this host of an upload of its own: written before anything is made, so that whatever a killed run has left can be
// gone on with or removed.
type upload struct {
	Engine string `json:"engine"`
	Name   string `json:"name"` // of the disk and of the VM, like nothing else's
	Disk   string `json:"disk,omitempty"`

	file string
}

func (d *Driver) readUpload(file string) (u upload, err error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return upload{file: file}, nil
	}
	if err == nil && json.Unmarshal(data, &u) != nil {
		u = upload{} // torn: nothing was made yet
	}
	u.file = file
	return u, err
}

func (u upload) write() error {
	data, err := json.Marshal(u)
	if err != nil {
		return err
	}
	if err := os.WriteFile(u.file+".part", data, 0o600); err != nil {
		return err
	}
	return os.Rename(u.file+".part", u.file)
}

// template is the id of the template that a machine is made of: the one that the settings name, or the image's, which is made once.
func (d *Driver) template(ctx context.Context, c *client, at place, m provision.Machine) (string, error) {
	if at.template != "" {
		return at.template, nil
	}
	name := imageName(m.ImageDigest, at.storageDomain)
	d.mu.Lock()
	id := d.made[name]
	d.mu.Unlock()
	if id != "" {
		return id, nil
	}
	file := filepath.Join(d.cache, name+".json")
	unlock, err := d.alone(ctx, file)
	if err != nil {
		return "", err
	}
	defer unlock()
	id, err = c.ready(ctx, name, m.ImageDigest)
	if err == nil && id == "" {
		id, err = d.makeTemplate(ctx, c, at, m, name, file)
	}
	if err != nil {
		return "", fmt.Errorf("the template of image %s: %w", m.ImageDigest, err)
	}
	d.mu.Lock()
	d.made[name] = id
	d.mu.Unlock()
	return id, nil
}

// templateDisk is how many MiB a template's disk has, which is asked once; 0 where a user is not shown it.
func (d *Driver) templateDisk(ctx context.Context, c *client, template string) (int, error) {
	d.placing.Lock()
	defer d.placing.Unlock()
	if size, asked := d.disks[template]; asked {
		return size, nil
	}
	disk, err := c.bootDisk(ctx, "/templates/"+template)
	if err != nil && !errors.As(err, new(*Fault)) {
		return 0, fmt.Errorf("the template's disk: %w", err)
	}
	d.disks[template] = disk.MiB
	return disk.MiB, nil
}

// alone waits until nobody else on this host is at an upload, by its file.
func (d *Driver) alone(ctx context.Context, file string) (unlock func(), err error) {
	if err := os.MkdirAll(d.cache, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(file+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, d.timing.settle, fmt.Errorf("another `bed` of this host has been at the upload of %s for more than %s", filepath.Base(file), d.timing.settle))
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || !sleep(ctx, d.timing.poll/4) {
			_ = f.Close()
			return nil, errors.Join(context.Cause(ctx), err)
		}
	}
}

// ready is the id of an image's template, once the engine has made it; empty is none. One that has failed is removed.
func (c *client) ready(ctx context.Context, name, digest string) (id string, err error) {
	ctx, cancel := c.remaining(ctx, "make the template")
	defer cancel()
	err = c.until(ctx, func(ctx context.Context) (bool, error) {
		id = ""
		data, err := c.call(ctx, http.MethodGet, "/templates", search("name", name), nil)
		found, err := many(data, err, ovirtsdk.XMLTemplateReadMany)
		if err != nil {
			return false, err
		}
		for _, t := range found.Slice() {
			description, _ := t.Description()
			if have, _ := t.Name(); have != name || description != aboutImage(digest) {
				continue
			}
			switch said, _ := t.Status(); said {
			case ovirtsdk.TEMPLATESTATUS_OK:
				id = idOf(t)
			case ovirtsdk.TEMPLATESTATUS_LOCKED:
				return false, nil
			default:
				_, err := c.call(ctx, http.MethodDelete, "/templates/"+idOf(t), nil, nil)
				return false, ignoreNotFound(err)
			}
		}
		return true, nil
	})
	return id, err
}

// makeTemplate uploads the image to a disk, and makes a template of that by way of a VM, which an engine wants. What a run on this host that was
// cut short has left of that is gone on with. One that the engine refuses for good leaves nothing.
func (d *Driver) makeTemplate(ctx context.Context, c *client, at place, m provision.Machine, name, file string) (id string, err error) {
	step := progress.Start(ctx, "upload %s", filepath.Base(filepath.Dir(m.Image)))
	defer func() { step.End(err) }()
	u, err := d.readUpload(file)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil && (ctx.Err() != nil || !final(err)) {
			return // what was sent is worth keeping; and what was refused may be taken the next time, when this run was told to end
		}
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.timing.retry)
		defer cancel()
		if u, err = d.again(u, err); u.Name != "" {
			err = errors.Join(err, c.clearUpload(clean, u))
		}
		if err != nil {
			id = ""
		}
	}()
	if _, err := c.transferUnderWay(ctx, u.Disk); adminsOnly(err) {
		return "", fmt.Errorf("the engine lets administrators only look after an upload; have `bed up` of one of them make it, for every bed there, or name a template with -c ovirt.template=…: %w", err)
	}
	if u.Engine != d.settings.URL {
		u = upload{Engine: d.settings.URL, Name: name + "-" + strings.ToLower(rand.Text()[:8]), file: file}
		if err := u.write(); err != nil {
			return "", err
		}
	}
	if err := c.clearBuilder(ctx, u.Name); err != nil {
		return "", err
	}
	if u.Disk, err = d.upload(ctx, c, at, m, u, func(part string) { step.Update("%s", part) }); err != nil {
		return "", err
	}
	step.Update("make a template of it")
	attachment := ovirtsdk.NewDiskAttachmentBuilder().Bootable(true).Active(true).Interface(ovirtsdk.DISKINTERFACE_VIRTIO_SCSI).Disk(ovirtsdk.NewDiskBuilder().Id(u.Disk).MustBuild()).MustBuild()
	builder := ovirtsdk.NewVmBuilder().Name(u.Name).Description(aboutUpload).Cluster(ovirtsdk.NewClusterBuilder().Id(at.cluster).MustBuild()).
		Template(ovirtsdk.NewTemplateBuilder().Name("Blank").MustBuild()).Type(ovirtsdk.VMTYPE_SERVER).
		Os(ovirtsdk.NewOperatingSystemBuilder().Type("other_linux").MustBuild()).DiskAttachmentsOfAny(attachment).MustBuild()
	body, err := written(builder, ovirtsdk.XMLVmWriteOne)
	if err != nil {
		return "", err
	}
	lookVM := byName(c, "/vms", search("name", u.Name), u.Name, ovirtsdk.XMLVmReadMany, (*ovirtsdk.VmSlice).Slice)
	vm, err := c.create(ctx, "/vms", body, lookVM)
	if err != nil {
		return "", err
	}
	if _, err := c.awaitVM(ctx, vm, "be made", ovirtsdk.VMSTATUS_DOWN, alone); err != nil {
		return "", err
	}
	body, err = written(ovirtsdk.NewTemplateBuilder().Name(name).Description(aboutImage(m.ImageDigest)).Vm(ovirtsdk.NewVmBuilder().Id(vm).MustBuild()).MustBuild(), ovirtsdk.XMLTemplateWriteOne)
	if err != nil {
		return "", err
	}
	look := byName(c, "/templates", search("name", name), name, ovirtsdk.XMLTemplateReadMany, (*ovirtsdk.TemplateSlice).Slice)
	if _, err := c.create(ctx, "/templates", body, look); err != nil {
		if id, errLook := c.ready(ctx, name, m.ImageDigest); errLook == nil && id != "" { // another host was quicker
			return id, nil
		}
		return "", err
	}
	id, err = c.ready(ctx, name, m.ImageDigest)
	if err == nil && id == "" {
		err = errors.New("the engine began to make it, and has none now; see its events")
	}
	return id, err
}

// final says that an upload cannot go on.
func final(err error) bool {
	var fault *Fault
	return errors.Is(err, errContent) || errors.As(err, new(*imageioError)) || errors.As(err, &fault) && fault.Status < http.StatusInternalServerError && !errors.As(err, new(*uncertainError))
}

// again is an upload as it is written down by now.
func (d *Driver) again(u upload, err error) (upload, error) {
	now, errRead := d.readUpload(u.file)
	return now, errors.Join(err, errRead)
}

// KeptImages lists the templates that were made of images.
func (d *Driver) KeptImages(ctx context.Context) ([]provision.KeptImage, error) {
	c, err := d.connected(ctx)
	if err != nil {
		return nil, err
	}
	data, err := c.call(ctx, http.MethodGet, "/templates", search("name", imagePrefix+"*"), nil)
	templates, err := many(data, err, ovirtsdk.XMLTemplateReadMany)
	if err != nil {
		return nil, err
	}
	data, err = c.call(ctx, http.MethodGet, "/vms", nil, nil)
	vms, err := many(data, err, ovirtsdk.XMLVmReadMany)
	if err != nil {
		return nil, err
	}
	var kept []provision.KeptImage
	for _, t := range templates.Slice() {
		name, _ := t.Name()
		description, _ := t.Description()
		digest, ours := strings.CutPrefix(description, aboutImage(""))
		if !ours {
			continue
		}
		image := provision.KeptImage{ID: idOf(t), Name: name, Digest: digest}
		for _, vm := range vms.Slice() {
			if of, ok := vm.Template(); ok && idOf(of) == image.ID {
				image.Used++
			}
		}
		kept = append(kept, image)
	}
	return kept, nil
}

// RemoveImage removes a template, with its disk. The engine refuses one that a machine is made of.
func (d *Driver) RemoveImage(ctx context.Context, id string) error {
	c, err := d.connected(ctx)
	if err != nil {
		return err
	}
	_, err = c.call(ctx, http.MethodDelete, "/templates/"+id, nil, nil)
	return ignoreNotFound(err)
}

// clearUpload removes what an image's way to its template has left.
func (c *client) clearUpload(ctx context.Context, u upload) error {
	if err := c.clearBuilder(ctx, u.Name); err != nil {
		return err
	}
	disk := u.Disk
	if disk == "" { // cut short before its id was written down, and so before there was a template to inherit the name
		var err error
		if disk, err = c.diskCalled(u.Name)(ctx); err != nil {
			return err
		}
	}
	if disk != "" {
		transfer, err := c.transferUnderWay(ctx, disk)
		if err == nil && transfer != "" {
			if _, err = c.call(ctx, http.MethodPost, "/imagetransfers/"+transfer+"/cancel", nil, action()); err == nil {
				err = c.awaitCancelled(ctx, transfer)
			}
		}
		if err := errors.Join(err, c.removeDisk(ctx, disk)); err != nil {
			return err
		}
	}
	return os.Remove(u.file)
}

// diskCalled looks for a disk by its name.
func (c *client) diskCalled(name string) func(context.Context) (string, error) {
	return byName(c, "/disks", search("name", name), name, ovirtsdk.XMLDiskReadMany, (*ovirtsdk.DiskSlice).Slice)
}

// ClearUploads removes what runs on this host have left of uploads to this engine that nobody is at.
func (d *Driver) ClearUploads(ctx context.Context) error {
	c, err := d.connected(ctx)
	if err != nil {
		return err
	}
	files, _ := filepath.Glob(filepath.Join(d.cache, imagePrefix+"*.json"))
	for _, file := range files {
		brief, cancel := context.WithTimeout(ctx, d.timing.poll/2)
		unlock, err := d.alone(brief, file)
		cancel()
		if err != nil {
			continue // somebody is
		}
		u, err := d.readUpload(file)
		if err == nil && u.Engine == d.settings.URL {
			err = c.clearUpload(ctx, u)
		}
		unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// clearBuilder removes the VM that a template is made by, and leaves its disk.
func (c *client) clearBuilder(ctx context.Context, name string) error {
	ctx, cancel := c.remaining(ctx, "remove the VM that the template is made of")
	defer cancel()
	id, err := byName(c, "/vms", search("name", name), name, ovirtsdk.XMLVmReadMany, (*ovirtsdk.VmSlice).Slice)(ctx)
	if err != nil || id == "" {
		return err
	}
	asked := false
	return c.until(ctx, func(ctx context.Context) (bool, error) {
		vm, said, err := c.vm(ctx, id)
		if err != nil || vm == nil || asked && said != ovirtsdk.VMSTATUS_DOWN || said == ovirtsdk.VMSTATUS_IMAGE_LOCKED {
			return vm == nil, err
		}
		_, err = c.call(ctx, http.MethodDelete, "/vms/"+id, url.Values{"detach_only": {"true"}}, nil)
		asked = true
		return notFound(err), ignoreNotFound(err)
	})
}

// removeDisk removes a disk, and waits until it is gone.
func (c *client) removeDisk(ctx context.Context, id string) error {
	ctx, cancel := c.remaining(ctx, "remove the disk")
	defer cancel()
	if _, err := c.call(ctx, http.MethodDelete, "/disks/"+id, nil, nil); err != nil {
		return ignoreNotFound(err)
	}
	return c.until(ctx, func(ctx context.Context) (bool, error) {
		data, err := c.call(ctx, http.MethodGet, "/disks/"+id, nil, nil)
		disk, err := one(data, err, ovirtsdk.XMLDiskReadOne)
		if err != nil {
			return notFound(err), ignoreNotFound(err)
		}
		if said, _ := disk.Status(); said == ovirtsdk.DISKSTATUS_ILLEGAL {
			return false, fmt.Errorf("the engine could not remove disk %s, and says that it is illegal; see its events", id)
		}
		return false, nil
	})
}
