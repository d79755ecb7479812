package enginetest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"gopkg.in/yaml.v3"
)

// bootCommand is the script that cloud-init runs at boot.
func bootCommand(config string) (string, error) {
	var c struct {
		Bootcmd [][]string `yaml:"bootcmd"`
	}
	if err := yaml.Unmarshal([]byte(config), &c); err != nil {
		return "", err
	}
	if len(c.Bootcmd) != 1 || len(c.Bootcmd[0]) != 3 {
		return "", fmt.Errorf("the cloud-init data has no command of three words for the boot")
	}
	return c.Bootcmd[0][2], nil
}

func (d *disk) show() string {
	return element("disk", "disks", d.id, "name", d.name, "alias", d.name, "description", d.description, "status", d.status, "format", "cow", "sparse", "true",
		"provisioned_size", fmt.Sprint(d.size), "actual_size", fmt.Sprint(len(d.content)))
}

func (e *Engine) getDisks(r *http.Request, _ []byte) answer {
	var all []string
	for _, d := range e.disks {
		if matches(r, map[string][]string{"name": {d.name}}) {
			all = append(all, d.show())
		}
	}
	return collection("disks", all)
}

func (e *Engine) getDisk(r *http.Request, _ []byte) answer {
	d := e.disk(r.PathValue("id"))
	if d == nil {
		return missing()
	}
	return ok(d.show())
}

func (e *Engine) addDisk(_ *http.Request, body []byte) answer {
	var b struct {
		Name        string      `xml:"name"`
		Description string      `xml:"description"`
		Size        int64       `xml:"provisioned_size"`
		Domains     []reference `xml:"storage_domains>storage_domain"`
	}
	if err := xml.Unmarshal(body, &b); err != nil || b.Size <= 0 || len(b.Domains) != 1 || b.Domains[0].ID != StorageDomain {
		return refused(http.StatusBadRequest, "Cannot add Virtual Disk. Storage Domain doesn't exist.")
	}
	if e.full(1) {
		return refused(http.StatusConflict, "Cannot add Virtual Disk. Low disk space on Storage Domain data.")
	}
	d := &disk{id: newID(), name: b.Name, description: b.Description, size: b.Size, status: "locked"}
	e.disks = append(e.disks, d)
	e.after(e.latency.MakeDisk, func() { d.status = "ok" })
	return accepted(d.show())
}

func (e *Engine) deleteDisk(r *http.Request, _ []byte) answer {
	d := e.disk(r.PathValue("id"))
	switch {
	case d == nil:
		return missing()
	case d.template != "":
		return refused(http.StatusConflict, "Cannot remove Virtual Disk. A storage domain must be specified when deleting one of a template's disk's copies.")
	case d.status != "ok":
		return refused(http.StatusConflict, "Cannot remove Virtual Disk: The following disks are locked: "+d.name+". Please try again in a few minutes.")
	}
	d.status = "locked"
	e.after(e.latency.Remove, func() { e.disks = slices.DeleteFunc(e.disks, func(o *disk) bool { return o == d }) })
	return ok("<action><status>complete</status></action>")
}

func (t *template) show() string {
	return element("template", "templates", t.id, "name", t.name, "description", t.description, "status", t.status,
		"version", fmt.Sprintf("<version_number>%d</version_number>", t.version))
}

func (e *Engine) getTemplates(r *http.Request, _ []byte) answer {
	var all []string
	for _, t := range e.templates {
		if matches(r, map[string][]string{"name": {t.name}, "description": {t.description}}) {
			all = append(all, t.show())
		}
	}
	return collection("templates", all)
}

func (e *Engine) getTemplateAttachments(r *http.Request, _ []byte) answer {
	t := find(e.templates, r.PathValue("id"), func(t *template) string { return t.id })
	if t == nil {
		return missing()
	}
	return collection("disk_attachments", attachments([]*disk{{id: t.disk.id, name: t.disk.name, status: "ok", size: t.size}}))
}

func (e *Engine) addTemplate(_ *http.Request, body []byte) answer {
	var b struct {
		Name        string    `xml:"name"`
		Description string    `xml:"description"`
		VM          reference `xml:"vm"`
	}
	if err := xml.Unmarshal(body, &b); err != nil {
		return refused(http.StatusBadRequest, "Request syntactically incorrect.")
	}
	v := e.vm(b.VM.ID)
	switch {
	case v == nil:
		return missing()
	case slices.ContainsFunc(e.templates, func(t *template) bool { return t.name == b.Name }):
		return refused(http.StatusConflict, "Cannot add Template. The Template name is already in use, please choose a unique name and try again.")
	case v.status != "down":
		return refused(http.StatusConflict, "Cannot add Template. "+locked)
	}
	t := &template{id: newID(), name: b.Name, description: b.Description, status: "locked", version: 1}
	for _, d := range v.disks {
		t.size += d.size
		d.status = "locked"
		t.disk = &disk{id: newID(), name: d.name, description: d.description, size: d.size, template: t.id, status: "ok"}
		e.disks = append(e.disks, t.disk)
	}
	v.status = "image_locked"
	e.templates = append(e.templates, t)
	e.after(e.latency.MakeTemplate, func() {
		t.status, v.status = "ok", "down"
		for _, d := range v.disks {
			d.status = "ok"
		}
	})
	return accepted(t.show())
}

func (e *Engine) deleteTemplate(r *http.Request, _ []byte) answer {
	t := find(e.templates, r.PathValue("id"), func(t *template) string { return t.id })
	switch {
	case t == nil:
		return missing()
	case slices.ContainsFunc(e.vms, func(v *vm) bool { return v.template == t.id }):
		return refused(http.StatusConflict, "Cannot delete Template. Template is being used by the following VMs.")
	}
	e.templates = slices.DeleteFunc(e.templates, func(o *template) bool { return o == t })
	e.disks = slices.DeleteFunc(e.disks, func(d *disk) bool { return d.template == t.id })
	return ok("<action><status>complete</status></action>")
}

func (e *Engine) transfer(r *http.Request) *transfer {
	return find(e.transfers, r.PathValue("id"), func(t *transfer) string { return t.id })
}

func (t *transfer) show(e *Engine) string {
	at := ""
	if t.phase == "transferring" {
		at = e.server.URL + "/images/" + t.ticket
	}
	text := element("image_transfer", "imagetransfers", t.id, "phase", t.phase, "direction", "upload", "format", "raw", "transfer_url", at)
	return text[:len(text)-len("</image_transfer>")] + link("disk", "disks", t.disk) + "</image_transfer>"
}

func (e *Engine) getTransfers(*http.Request, []byte) answer {
	var all []string
	for _, t := range e.transfers {
		all = append(all, t.show(e))
	}
	return collection("image_transfers", all)
}

func (e *Engine) getTransfer(r *http.Request, _ []byte) answer {
	t := e.transfer(r)
	if t == nil {
		return missing()
	}
	return ok(t.show(e))
}

func (e *Engine) addTransfer(_ *http.Request, body []byte) answer {
	var b struct {
		Disk      reference `xml:"disk"`
		Direction string    `xml:"direction"`
		Format    string    `xml:"format"`
	}
	if err := xml.Unmarshal(body, &b); err != nil || b.Direction != "upload" || b.Format != "raw" {
		return refused(http.StatusBadRequest, "Request syntactically incorrect.")
	}
	d := e.disk(b.Disk.ID)
	if d == nil {
		return missing()
	}
	if d.status != "ok" {
		return refused(http.StatusConflict, "Cannot transfer Virtual Disk: The following disks are locked: "+d.name+". Please try again in a few minutes.")
	}
	d.status = "locked"
	t := &transfer{id: newID(), disk: d.id, phase: "initializing", ticket: newID()}
	e.transfers = append(e.transfers, t)
	e.after(e.latency.Transfer, func() { t.phase = "transferring" })
	return answer{http.StatusCreated, t.show(e)}
}

func (e *Engine) actTransfer(r *http.Request, _ []byte) answer {
	t := e.transfer(r)
	if t == nil {
		return missing()
	}
	d := e.disk(t.disk)
	switch r.PathValue("action") {
	case "resume":
		t.phase = "resuming"
		e.after(e.latency.Transfer, func() { t.phase = "transferring" })
	case "finalize":
		t.phase = "finalizing_success"
		e.after(e.latency.Transfer, func() { t.phase, d.status = "finished_success", "ok" })
	case "cancel":
		t.phase = "cancelled_user"
		e.after(e.latency.Transfer, func() {
			t.phase = "finalizing_cleanup"
			e.after(e.latency.Transfer, func() { // the disk goes with it
				t.phase = "finished_failure"
				e.disks = slices.DeleteFunc(e.disks, func(o *disk) bool { return o == d })
			})
		})
	default:
		return missing()
	}
	return ok("<action><status>complete</status></action>")
}

// image is imageio: what is written to it becomes a disk's content, and what is not is zero.
func (e *Engine) image(w http.ResponseWriter, r *http.Request) {
	time.Sleep(e.latency.Answer)
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.settle()
	t := find(e.transfers, r.PathValue("ticket"), func(t *transfer) string { return t.ticket })
	if t == nil || t.phase != "transferring" {
		http.Error(w, "No such ticket", http.StatusForbidden)
		return
	}
	d := e.disk(t.disk)
	call := r.Method + " /images/*"
	e.calls[call]++
	if f := e.fault(call); f != nil {
		if f.Break {
			panic(http.ErrAbortHandler)
		}
		http.Error(w, f.Detail, f.Status)
		return
	}
	switch {
	case r.Method == http.MethodPut:
		var start, end int64
		if _, err := fmt.Sscanf(r.Header.Get("Content-Range"), "bytes %d-%d/*", &start, &end); err != nil || end-start+1 != int64(len(body)) || end >= d.size {
			http.Error(w, "Invalid Content-Range", http.StatusRequestedRangeNotSatisfiable)
			return
		}
		if e.full(int64(len(body))) {
			http.Error(w, "No space left on device", http.StatusInternalServerError)
			return
		}
		if end+1 > int64(len(d.content)) {
			d.content = append(d.content, make([]byte, end+1-int64(len(d.content)))...)
		}
		e.sent += int64(len(body))
		copy(d.content[start:], body)
		d.written = append(d.written, span{start, int64(len(body))})
	case r.Method == http.MethodPatch:
	case r.PathValue("what") == "extents":
		_ = json.NewEncoder(w).Encode(d.extents())
	case r.PathValue("what") == "checksum" && r.URL.Query().Get("algorithm") == "sha256":
		size, _ := strconv.Atoi(r.URL.Query().Get("block_size"))
		_ = json.NewEncoder(w).Encode(map[string]any{"algorithm": "sha256", "block_size": size, "checksum": d.checksum(int64(size))})
	default:
		http.Error(w, "Not found", http.StatusNotFound)
	}
}

type extent struct {
	Start  int64 `json:"start"`
	Length int64 `json:"length"`
	Zero   bool  `json:"zero"`
	Hole   bool  `json:"hole"`
}

func (d *disk) extents() (out []extent) {
	spans := slices.Clone(d.written)
	slices.SortFunc(spans, func(a, b span) int { return int(a.start - b.start) })
	at := int64(0)
	for _, s := range spans {
		if s.start > at {
			out = append(out, extent{at, s.start - at, true, true})
		}
		if end := s.start + s.length; end > at {
			begin := max(at, s.start)
			out = append(out, extent{Start: begin, Length: end - begin})
			at = end
		}
	}
	if at < d.size {
		out = append(out, extent{at, d.size - at, true, true})
	}
	return out
}

func (d *disk) checksum(size int64) string {
	all, block := sha256.New(), make([]byte, size)
	for at := int64(0); at < d.size; at += size {
		n := min(size, d.size-at)
		clear(block)
		if at < int64(len(d.content)) {
			copy(block[:n], d.content[at:])
		}
		sum := sha256.Sum256(block[:n])
		all.Write(sum[:])
	}
	return hex.EncodeToString(all.Sum(nil))
}

// Spoil changes what is on the disk of an upload, as a broken storage would.
func (e *Engine) Spoil() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, d := range e.disks {
		if len(d.content) > 0 {
			d.content[0] ^= 1
			return true
		}
	}
	return false
}

// Sent is how many bytes of images have come.
func (e *Engine) Sent() (n int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.sent
}
