package ovirt

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lima-vm/go-qcow2reader"
	"github.com/lima-vm/go-qcow2reader/image"
	ovirtsdk "github.com/ovirt/go-ovirt"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
)

const (
	piece     = 8 << 20 // sent in one request
	hashBlock = 4 << 20 // of imageio's checksum
)

// extent is a stretch of a disk, as imageio tells of it.
type extent struct {
	Start  int64 `json:"start"`
	Length int64 `json:"length"`
	Zero   bool  `json:"zero"`
}

// upload has an image's content on a disk of the engine, and returns that. One that an earlier run began is gone on with: what it has sent is
// not sent again. In the end the engine's checksum must be the image's.
func (d *Driver) upload(ctx context.Context, c *client, at place, m provision.Machine, u upload, say func(string)) (id string, err error) {
	file, err := os.Open(filepath.Join(m.Image, bed.DiskFile))
	if err != nil {
		return "", err
	}
	defer file.Close()
	img, err := qcow2reader.Open(file)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", file.Name(), err)
	}
	defer img.Close()
	data, err := dataExtents(img)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", file.Name(), err)
	}
	for attempt := 0; ; attempt++ { // the second with a new disk
		if u.Disk, err = c.uploadDisk(ctx, at, u, img.Size(), data); err != nil {
			return "", err
		}
		if err := u.write(); err != nil {
			return "", err
		}
		err = c.transfer(ctx, u.Disk, img, data, say)
		if !errors.Is(err, errContent) || attempt > 0 {
			return u.Disk, err
		}
		say("once more: " + err.Error())
		if err := c.removeDisk(ctx, u.Disk); err != nil {
			return "", err
		}
	}
}

var errContent = errors.New("what is on the engine's disk is not what was sent")

// uploadDisk is a disk to send the image to: the upload's own, or a new one.
func (c *client) uploadDisk(ctx context.Context, at place, u upload, size int64, data []extent) (string, error) {
	if u.Disk != "" {
		answer, err := c.call(ctx, http.MethodGet, "/disks/"+u.Disk, nil, nil)
		if err == nil {
			return rootID(answer), nil
		}
		if !notFound(err) {
			return "", err
		}
	}
	look := c.diskCalled(u.Name)
	if id, err := look(ctx); err != nil || id != "" {
		return id, err
	}
	full := int64(0)
	for _, e := range data {
		full += e.Length
	}
	// On block storage a disk has what it begins with until somebody extends it: the data, and qcow2's own tables.
	body, err := written(ovirtsdk.NewDiskBuilder().Name(u.Name).Description(aboutUpload).Format(ovirtsdk.DISKFORMAT_COW).Sparse(true).ProvisionedSize(size).InitialSize(min(full+full/8+1<<20, size)).
		StorageDomainsOfAny(ovirtsdk.NewStorageDomainBuilder().Id(at.storageDomain).MustBuild()).MustBuild(), ovirtsdk.XMLDiskWriteOne)
	if err != nil {
		return "", err
	}
	id, err := c.create(ctx, "/disks", body, look)
	if err != nil {
		return "", fmt.Errorf("make a disk for it: %w", err)
	}
	return id, nil
}

// dataExtents are the stretches of an image that are not all zeroes.
func dataExtents(img image.Image) (out []extent, err error) {
	for at := int64(0); at < img.Size(); {
		e, err := img.Extent(at, img.Size()-at)
		if err != nil {
			return nil, err
		}
		if e.Allocated && !e.Zero {
			out = append(out, extent{Start: e.Start, Length: e.Length})
		}
		at = e.Start + e.Length
	}
	return out, nil
}

// transfer sends an image's content to a disk through the engine's image transfer, of which there is one that is gone on with, or a new one.
func (c *client) transfer(ctx context.Context, disk string, img image.Image, data []extent, say func(string)) error {
	var server string
	id, err := c.transferOf(ctx, disk)
	if err == nil {
		server, err = c.awaitTransfer(ctx, id)
	}
	if err != nil {
		return fmt.Errorf("begin the transfer: %w", err)
	}
	written, err := c.writtenExtents(ctx, id, server)
	if err != nil {
		return err
	}
	total, sent := int64(0), int64(0)
	for _, e := range data {
		total += e.Length
	}
	buffer := make([]byte, piece)
	for _, e := range data {
		for at := e.Start; at < e.Start+e.Length; at += piece {
			n := min(piece, e.Start+e.Length-at)
			sent += n
			if covered(written, at, n) {
				continue
			}
			if _, err := img.ReadAt(buffer[:n], at); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if err := c.put(ctx, id, server, at, buffer[:n]); err != nil {
				return fmt.Errorf("send it: %w", err)
			}
			say(fmt.Sprintf("%d of %d MiB", sent>>20, total>>20))
		}
	}
	say("check it")
	if _, err := c.image(ctx, id, http.MethodPatch, server, "", []byte(`{"op":"flush"}`), "application/json"); err != nil {
		return err
	}
	have, err := c.image(ctx, id, http.MethodGet, server+fmt.Sprintf("/checksum?algorithm=sha256&block_size=%d", hashBlock), "", nil, "")
	if err != nil {
		return err
	}
	var said struct{ Checksum string }
	if err := json.Unmarshal(have, &said); err != nil {
		return fmt.Errorf("the transfer's checksum: %w", err)
	}
	want, err := checksum(img, data)
	if err != nil {
		return err
	}
	end := "/finalize"
	if said.Checksum != want {
		end = "/cancel"
	}
	if _, err := c.call(ctx, http.MethodPost, "/imagetransfers/"+id+end, nil, action()); err != nil {
		var uncertain *uncertainError
		if !errors.As(err, &uncertain) { // that wait sees what has become of it
			return err
		}
	}
	if said.Checksum != want {
		return errors.Join(errContent, c.awaitCancelled(ctx, id))
	}
	if err := c.awaitGone(ctx, id); err != nil {
		return err
	}
	return c.awaitDisk(ctx, disk)
}

// transferUnderWay is a disk's image transfer, if there is one.
func (c *client) transferUnderWay(ctx context.Context, disk string) (string, error) {
	data, err := c.call(ctx, http.MethodGet, "/imagetransfers", nil, nil)
	all, err := many(data, err, ovirtsdk.XMLImageTransferReadMany)
	if err != nil {
		return "", err
	}
	for _, t := range all.Slice() {
		of, ok := t.Disk()
		if !ok || idOf(of) != disk {
			continue
		}
		switch phase, _ := t.Phase(); phase {
		case ovirtsdk.IMAGETRANSFERPHASE_INITIALIZING, ovirtsdk.IMAGETRANSFERPHASE_TRANSFERRING, ovirtsdk.IMAGETRANSFERPHASE_RESUMING,
			ovirtsdk.IMAGETRANSFERPHASE_PAUSED_SYSTEM, ovirtsdk.IMAGETRANSFERPHASE_PAUSED_USER:
			return idOf(t), nil
		}
	}
	return "", nil
}

// transferOf is a disk's image transfer, begun if there is none.
func (c *client) transferOf(ctx context.Context, disk string) (string, error) {
	look := func(ctx context.Context) (string, error) { return c.transferUnderWay(ctx, disk) }
	if id, err := look(ctx); err != nil || id != "" {
		return id, err
	}
	if err := c.awaitDisk(ctx, disk); err != nil {
		return "", err
	}
	// In the form that a machine sees, so that zeroes need not be sent.
	body, err := written(ovirtsdk.NewImageTransferBuilder().Disk(ovirtsdk.NewDiskBuilder().Id(disk).MustBuild()).Direction(ovirtsdk.IMAGETRANSFERDIRECTION_UPLOAD).
		Format(ovirtsdk.DISKFORMAT_RAW).MustBuild(), ovirtsdk.XMLImageTransferWriteOne)
	if err != nil {
		return "", err
	}
	return c.create(ctx, "/imagetransfers", body, look)
}

// awaitTransfer waits until data can be sent, has a transfer that the engine paused go on, and returns where to send it.
func (c *client) awaitTransfer(ctx context.Context, id string) (server string, err error) {
	ctx, cancel := c.remaining(ctx, "begin the transfer")
	defer cancel()
	err = c.until(ctx, func(ctx context.Context) (bool, error) {
		data, err := c.call(ctx, http.MethodGet, "/imagetransfers/"+id, nil, nil)
		t, err := one(data, err, ovirtsdk.XMLImageTransferReadOne)
		if err != nil {
			return false, err
		}
		switch phase, _ := t.Phase(); phase {
		case ovirtsdk.IMAGETRANSFERPHASE_TRANSFERRING:
			if server, _ = t.TransferUrl(); server == "" {
				server, _ = t.ProxyUrl()
			}
			return true, nil
		case ovirtsdk.IMAGETRANSFERPHASE_PAUSED_SYSTEM, ovirtsdk.IMAGETRANSFERPHASE_PAUSED_USER:
			_, err := c.call(ctx, http.MethodPost, "/imagetransfers/"+id+"/resume", nil, action())
			var uncertain *uncertainError
			if errors.As(err, &uncertain) {
				err = nil // the next look tells
			}
			return false, err
		case ovirtsdk.IMAGETRANSFERPHASE_INITIALIZING, ovirtsdk.IMAGETRANSFERPHASE_RESUMING:
			return false, nil
		default:
			return false, fmt.Errorf("the engine says that the transfer is %s; see its events", phase)
		}
	})
	return server, err
}

// awaitGone waits until a transfer has ended well.
func (c *client) awaitGone(ctx context.Context, id string) error {
	return c.awaitPhase(ctx, id, func(phase ovirtsdk.ImageTransferPhase) (bool, error) {
		if phase == ovirtsdk.IMAGETRANSFERPHASE_FINALIZING_FAILURE || ended(phase) && phase != ovirtsdk.IMAGETRANSFERPHASE_FINISHED_SUCCESS {
			return false, fmt.Errorf("the engine could not end the transfer, and says that it is %s; see its events", phase)
		}
		return ended(phase), nil
	})
}

// awaitCancelled waits until a transfer is over, however. The engine removes the disk of one that was cancelled.
func (c *client) awaitCancelled(ctx context.Context, id string) error {
	return c.awaitPhase(ctx, id, func(phase ovirtsdk.ImageTransferPhase) (bool, error) { return ended(phase), nil })
}

// ended are the phases that a transfer stays in. Of these, finished_cleanup is not go-ovirt's.
func ended(phase ovirtsdk.ImageTransferPhase) bool {
	return strings.HasPrefix(string(phase), "finished_")
}

func (c *client) awaitPhase(ctx context.Context, id string, done func(ovirtsdk.ImageTransferPhase) (bool, error)) error {
	ctx, cancel := c.remaining(ctx, "end the transfer")
	defer cancel()
	return c.until(ctx, func(ctx context.Context) (bool, error) {
		data, err := c.call(ctx, http.MethodGet, "/imagetransfers/"+id, nil, nil)
		t, err := one(data, err, ovirtsdk.XMLImageTransferReadOne)
		if err != nil {
			return notFound(err), ignoreNotFound(err)
		}
		phase, _ := t.Phase()
		return done(phase)
	})
}

// writtenExtents are the stretches that the engine's disk has data in already.
func (c *client) writtenExtents(ctx context.Context, id, server string) (out []extent, err error) {
	answer, err := c.image(ctx, id, http.MethodGet, server+"/extents", "", nil, "")
	if err != nil {
		return nil, err
	}
	var all []extent
	if err := json.Unmarshal(answer, &all); err != nil {
		return nil, fmt.Errorf("what the engine has of the image: %w", err)
	}
	for _, e := range all {
		if !e.Zero {
			out = append(out, e)
		}
	}
	return out, nil
}

// covered says that a stretch lies within those that are there.
func covered(have []extent, start, length int64) bool {
	for _, e := range have { // in order
		if e.Start <= start && start < e.Start+e.Length {
			if start+length <= e.Start+e.Length {
				return true
			}
			length -= e.Start + e.Length - start
			start = e.Start + e.Length
		}
	}
	return false
}

// put sends a piece.
func (c *client) put(ctx context.Context, id, server string, at int64, data []byte) error {
	_, err := c.image(ctx, id, http.MethodPut, server+"?flush=n", fmt.Sprintf("bytes %d-%d/*", at, at+int64(len(data))-1), data, "application/octet-stream")
	return err
}

// image is imageio, once more where the connection broke or the engine had paused: all that is asked of it can be asked twice.
func (c *client) image(ctx context.Context, id, method, at, content string, data []byte, kind string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.timing.settle, fmt.Errorf("not within %s", c.timing.settle))
	defer cancel()
	end := time.Now().Add(c.timing.retry)
	for pause := c.timing.pause; ; pause = min(2*pause, c.timing.most) {
		answer, err := c.imageio(ctx, method, at, content, data, kind)
		var refusal *imageioError
		if err == nil || errors.As(err, &refusal) && refusal.status != http.StatusForbidden && refusal.status != http.StatusServiceUnavailable || time.Now().After(end) {
			return answer, err
		}
		if !sleep(ctx, pause) {
			return nil, errors.Join(context.Cause(ctx), err)
		}
		if _, errTransfer := c.awaitTransfer(ctx, id); errTransfer != nil {
			return nil, errors.Join(err, errTransfer)
		}
	}
}

// imageio makes a request of the daemon that takes images. Its address is its credential, and so no error names it.
func (c *client) imageio(ctx context.Context, method, at, content string, data []byte, kind string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, at, bytes.NewReader(data))
	if err != nil {
		return nil, errors.New("the engine names an address for the image that is none")
	}
	if content != "" {
		req.Header.Set("Content-Range", content)
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("imageio at %s: %s", req.URL.Host, strings.ReplaceAll(err.Error(), at, req.URL.Host))
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= http.StatusBadRequest {
		err = &imageioError{resp.StatusCode, fmt.Sprintf("imageio at %s refuses %s: %s: %s", req.URL.Host, method, resp.Status, strings.TrimSpace(string(answer)))}
	}
	return answer, err
}

// imageioError is what imageio refuses: forbidden is a transfer that the engine has paused.
type imageioError struct {
	status int
	text   string
}

func (e *imageioError) Error() string { return e.text }

// checksum is imageio's of an image: the digest of its blocks' digests.
func checksum(img image.Image, data []extent) (string, error) {
	all, block := sha256.New(), make([]byte, hashBlock)
	zero := sha256.Sum256(block)
	next := 0
	for at := int64(0); at < img.Size(); at += hashBlock {
		n := min(hashBlock, img.Size()-at)
		for next < len(data) && data[next].Start+data[next].Length <= at {
			next++
		}
		if n == hashBlock && (next == len(data) || data[next].Start >= at+n) {
			all.Write(zero[:])
			continue
		}
		if _, err := img.ReadAt(block[:n], at); err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		sum := sha256.Sum256(block[:n])
		all.Write(sum[:])
	}
	return hex.EncodeToString(all.Sum(nil)), nil
}
