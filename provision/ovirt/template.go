package ovirt

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"

	ovirtsdk "github.com/ovirt/go-ovirt"
	"golang.org/x/sys/unix"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/provision"
)

// aboutImage is the description of what an image has become in an engine: a template, and on the way there a disk and a VM.
func aboutImage(digest string) string { return "Bedfellow image " + digest }

// imageName is what they are called. An engine has a name once.
func imageName(digest string) string {
	return "bedfellow-image-" + strings.TrimPrefix(digest, "sha256:")[:min(16, len(strings.TrimPrefix(digest, "sha256:")))]
}

// template is the id of the template that a machine is made of: the one that the settings name, or the image's, which is made once.
func (d *Driver) template(ctx context.Context, c *client, at place, m provision.Machine) (string, error) {
	if name := d.settings.Template; name != "" {
		data, err := c.call(ctx, http.MethodGet, "/templates", nil, nil)
		all, err := many(data, err, ovirtsdk.XMLTemplateReadMany)
		if err != nil {
			return "", err
		}
		id, problem := choose("template", name, "template", list(all.Slice()))
		if problem != nil {
			return "", bed.Problems{*problem}
		}
		return id, nil
	}
	d.mu.Lock()
	once := d.templates[m.ImageDigest]
	if once == nil {
		once = &sync.Mutex{}
		d.templates[m.ImageDigest] = once
	}
	d.mu.Unlock()
	once.Lock()
	defer once.Unlock()
	d.mu.Lock()
	id := d.made[m.ImageDigest]
	d.mu.Unlock()
	if id != "" {
		return id, nil
	}
	unlock, err := d.alone(ctx, m.ImageDigest)
	if err != nil {
		return "", err
	}
	defer unlock()
	id, err = c.ready(ctx, m.ImageDigest)
	if err == nil && id == "" {
		id, err = d.makeTemplate(ctx, c, at, m)
	}
	if err != nil {
		return "", fmt.Errorf("the template of image %s: %w", m.ImageDigest, err)
	}
	d.mu.Lock()
	d.made[m.ImageDigest] = id
	d.mu.Unlock()
	return id, nil
}

// alone waits until no other process of this host uploads the image.
func (d *Driver) alone(ctx context.Context, digest string) (unlock func(), err error) {
	if err := os.MkdirAll(d.cache, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(d.cache, imageName(digest)+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
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
func (c *client) ready(ctx context.Context, digest string) (id string, err error) {
	ctx, cancel := c.remaining(ctx, "make the template")
	defer cancel()
	err = c.until(ctx, func(ctx context.Context) (bool, error) {
		id = ""
		data, err := c.call(ctx, http.MethodGet, "/templates", search("name", imageName(digest)), nil)
		found, err := many(data, err, ovirtsdk.XMLTemplateReadMany)
		if err != nil {
			return false, err
		}
		for _, t := range found.Slice() {
			description, _ := t.Description()
			if name, _ := t.Name(); name != imageName(digest) || description != aboutImage(digest) {
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

// makeTemplate uploads the image to a disk, and makes a template of that by way of a VM, which an engine wants. What a run that was cut short
// has left of that is gone on with; one that fails leaves nothing.
func (d *Driver) makeTemplate(ctx context.Context, c *client, at place, m provision.Machine) (id string, err error) {
	step := progress.Start(ctx, "upload %s", filepath.Base(filepath.Dir(m.Image)))
	defer func() { step.End(err) }()
	name, description := imageName(m.ImageDigest), aboutImage(m.ImageDigest)
	if err := c.clearBuilder(ctx, name, description); err != nil {
		return "", err
	}
	defer func() {
		if ctx.Err() != nil { // what was sent is worth keeping
			return
		}
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.timing.retry)
		defer cancel()
		if err = errors.Join(err, c.clearUpload(clean, name, description)); err != nil {
			id = ""
		}
	}()
	disk, err := d.upload(ctx, c, at, m, func(part string) { step.Update("%s", part) })
	if err != nil {
		return "", err
	}
	step.Update("make a template of it")
	attachment := ovirtsdk.NewDiskAttachmentBuilder().Bootable(true).Active(true).Interface(ovirtsdk.DISKINTERFACE_VIRTIO_SCSI).Disk(ovirtsdk.NewDiskBuilder().Id(disk).MustBuild()).MustBuild()
	builder := ovirtsdk.NewVmBuilder().Name(name).Description(description).Cluster(ovirtsdk.NewClusterBuilder().Id(at.cluster).MustBuild()).
		Template(ovirtsdk.NewTemplateBuilder().Name("Blank").MustBuild()).Type(ovirtsdk.VMTYPE_SERVER).
		Os(ovirtsdk.NewOperatingSystemBuilder().Type("other_linux").MustBuild()).DiskAttachmentsOfAny(attachment).MustBuild()
	body, err := written(builder, ovirtsdk.XMLVmWriteOne)
	if err != nil {
		return "", err
	}
	lookVM := byName(c, "/vms", search("name", name), name, ovirtsdk.XMLVmReadMany, (*ovirtsdk.VmSlice).Slice)
	vm, err := c.create(ctx, "/vms", body, lookVM)
	if err != nil {
		return "", err
	}
	if _, err := c.awaitVM(ctx, vm, "be made", ovirtsdk.VMSTATUS_DOWN, alone); err != nil {
		return "", err
	}
	body, err = written(ovirtsdk.NewTemplateBuilder().Name(name).Description(description).Vm(ovirtsdk.NewVmBuilder().Id(vm).MustBuild()).MustBuild(), ovirtsdk.XMLTemplateWriteOne)
	if err != nil {
		return "", err
	}
	look := byName(c, "/templates", search("name", name), name, ovirtsdk.XMLTemplateReadMany, (*ovirtsdk.TemplateSlice).Slice)
	if _, err := c.create(ctx, "/templates", body, look); err != nil {
		return "", err
	}
	id, err = c.ready(ctx, m.ImageDigest)
	if err == nil && id == "" {
		err = errors.New("the engine began to make it, and has none now; see its events")
	}
	return id, err
}

// clearBuilder removes the VM that a template is made by, and leaves its disk.
func (c *client) clearBuilder(ctx context.Context, name, description string) error {
	data, err := c.call(ctx, http.MethodGet, "/vms", search("name", name), nil)
	found, err := many(data, err, ovirtsdk.XMLVmReadMany)
	if err != nil {
		return err
	}
	for _, vm := range found.Slice() {
		if have, _ := vm.Description(); have != description {
			continue
		}
		id := idOf(vm)
		if _, err := c.awaitVM(ctx, id, "be free", ovirtsdk.VMSTATUS_DOWN, alone); err != nil {
			return err
		}
		if _, err := c.call(ctx, http.MethodDelete, "/vms/"+id, map[string][]string{"detach_only": {"true"}}, nil); ignoreNotFound(err) != nil {
			return err
		}
		if err := c.until(ctx, func(ctx context.Context) (bool, error) {
			vm, _, err := c.vm(ctx, id)
			return vm == nil && err == nil, err
		}); err != nil {
			return err
		}
	}
	return nil
}

// KeptImages lists the templates that were made of images.
func (d *Driver) KeptImages(ctx context.Context) ([]provision.KeptImage, error) {
	c, err := d.connected(ctx)
	if err != nil {
		return nil, err
	}
	data, err := c.call(ctx, http.MethodGet, "/templates", search("name", imageName("*")), nil)
	templates, err := many(data, err, ovirtsdk.XMLTemplateReadMany)
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
		data, err := c.call(ctx, http.MethodGet, "/vms", search("template", name), nil)
		vms, err := many(data, err, ovirtsdk.XMLVmReadMany)
		if err != nil {
			return nil, err
		}
		kept = append(kept, provision.KeptImage{ID: idOf(t), Name: name, Digest: digest, Used: len(vms.Slice())})
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
func (c *client) clearUpload(ctx context.Context, name, description string) error {
	if err := c.clearBuilder(ctx, name, description); err != nil {
		return err
	}
	data, err := c.call(ctx, http.MethodGet, "/disks", search("name", name), nil)
	found, err := many(data, err, ovirtsdk.XMLDiskReadMany)
	if err != nil {
		return err
	}
	for _, disk := range found.Slice() {
		if have, _ := disk.Description(); have != description {
			continue
		}
		transfer, err := c.transferUnderWay(ctx, idOf(disk))
		if err == nil && transfer != "" {
			if _, err = c.call(ctx, http.MethodPost, "/imagetransfers/"+transfer+"/cancel", nil, action()); err == nil {
				err = c.awaitGone(ctx, transfer)
			}
		}
		if err != nil {
			return err
		}
		if err := c.removeDisk(ctx, idOf(disk)); err != nil {
			return err
		}
	}
	return nil
}

// clearUploads removes what runs on this host have left of uploads that nobody is at.
func (d *Driver) clearUploads(ctx context.Context, c *client) error {
	locks, _ := filepath.Glob(filepath.Join(d.cache, "bedfellow-image-*.lock"))
	for _, lock := range locks {
		name := strings.TrimSuffix(filepath.Base(lock), ".lock")
		f, err := os.OpenFile(lock, os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			_ = f.Close()
			continue
		}
		data, err := c.call(ctx, http.MethodGet, "/disks", search("name", name), nil)
		found, err := many(data, err, ovirtsdk.XMLDiskReadMany)
		if err == nil {
			for _, disk := range found.Slice() {
				if description, _ := disk.Description(); strings.HasPrefix(description, aboutImage("")) {
					err = errors.Join(err, c.clearUpload(ctx, name, description))
				}
			}
		}
		_ = f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// removeDisk removes a disk, and waits until it is gone.
func (c *client) removeDisk(ctx context.Context, id string) error {
	if _, err := c.call(ctx, http.MethodDelete, "/disks/"+id, nil, nil); err != nil {
		return ignoreNotFound(err)
	}
	return c.until(ctx, func(ctx context.Context) (bool, error) {
		_, err := c.call(ctx, http.MethodGet, "/disks/"+id, nil, nil)
		return notFound(err), ignoreNotFound(err)
	})
}
