package enginetest

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

func escape(s string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s))
	return b.String()
}

// element is one of the engine's objects: with its address, its id, and fields that are text unless they begin with <.
func element(kind, collection, id string, fields ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `<%s href="%s/%s/%s" id="%s">`, kind, apiPath, collection, id, id)
	for i := 0; i < len(fields); i += 2 {
		value := fields[i+1]
		if value == "" {
			continue
		}
		if !strings.HasPrefix(value, "<") {
			value = escape(value)
		}
		fmt.Fprintf(&b, "<%[1]s>%[2]s</%[1]s>", fields[i], value)
	}
	return b.String() + "</" + kind + ">"
}

func link(kind, collection, id string) string {
	return fmt.Sprintf(`<%s href="%s/%s/%s" id="%s"/>`, kind, apiPath, collection, id, id)
}

func collection(kind string, elements []string) answer {
	return ok("<" + kind + ">" + strings.Join(elements, "") + "</" + kind + ">")
}

// reference is a link in a request: by id or by name.
type reference struct {
	ID   string `xml:"id,attr"`
	Name string `xml:"name"`
}

// matches is the engine's search, as far as it is asked for: FIELD="PATTERN" or FIELD="PATTERN". Of a field that there are several of, one will
// do. Where the engine filters, it does not search.
func matches(r *http.Request, fields map[string][]string) bool {
	text := r.URL.Query().Get("search")
	if text == "" || filtered(r) {
		return true
	}
	for condition := range strings.SplitSeq(text, " or ") {
		field, pattern, _ := strings.Cut(condition, "=")
		like := regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(strings.Trim(pattern, `"`)), `\*`, ".*") + "$")
		if slices.ContainsFunc(fields[field], like.MatchString) {
			return true
		}
	}
	return false
}

func find[T any](all []*T, id string, of func(*T) string) *T {
	for _, x := range all {
		if of(x) == id {
			return x
		}
	}
	return nil
}

func (e *Engine) vm(id string) *vm { return find(e.vms, id, func(v *vm) string { return v.id }) }
func (e *Engine) disk(id string) *disk {
	return find(e.disks, id, func(d *disk) string { return d.id })
}

func (e *Engine) about(*http.Request, []byte) answer {
	return ok("<api><product_info><name>oVirt Engine</name><vendor>ovirt.org</vendor><version><full_version>4.5.6-fake</full_version><major>4</major><minor>5</minor></version></product_info></api>")
}

func (e *Engine) getDataCenters(*http.Request, []byte) answer {
	return collection("data_centers", []string{element("data_center", "datacenters", DataCenter, "name", "Default", "status", "up")})
}

func (e *Engine) getClusters(*http.Request, []byte) answer {
	return collection("clusters", []string{element("cluster", "clusters", Cluster, "name", "Default"), element("cluster", "clusters", SpareCluster, "name", "Spare")})
}

func (e *Engine) getStorageDomains(*http.Request, []byte) answer {
	return collection("storage_domains", []string{
		element("storage_domain", "storagedomains", StorageDomain, "name", "data", "status", "active", "type", "data"),
		element("storage_domain", "storagedomains", newID(), "name", "images", "status", "active", "type", "iso"),
	})
}

func (e *Engine) getNetworks(*http.Request, []byte) answer {
	return collection("networks", []string{element("network", "networks", Network, "name", "ovirtmgmt")})
}

func (e *Engine) getVnicProfiles(*http.Request, []byte) answer {
	return collection("vnic_profiles", []string{
		fmt.Sprintf(`<vnic_profile id="%s"><name>ovirtmgmt</name>%s</vnic_profile>`, VnicProfile, link("network", "networks", Network)),
		fmt.Sprintf(`<vnic_profile id="%s"><name>elsewhere</name>%s</vnic_profile>`, newID(), link("network", "networks", newID())),
	})
}

// show is a VM, with what a caller follows.
func (v *vm) show(follow string) string {
	reported := ""
	if strings.Contains(follow, "reported_devices") && v.address != "" {
		reported = fmt.Sprintf(`<reported_device id="%s"><ips><ip><address>%s</address><version>v4</version></ip></ips><name>eth0</name><type>network</type></reported_device>`, newID(), v.address)
	}
	attached := ""
	if strings.Contains(follow, "disk_attachments.disk") {
		attached = strings.Join(attachments(v.disks), "")
	}
	extra := link("cluster", "clusters", v.cluster) + link("template", "templates", v.template)
	text := element("vm", "vms", v.id, "name", v.name, "description", v.description, "comment", v.comment, "status", v.status,
		"cpu", fmt.Sprintf("<architecture>x86_64</architecture><topology><cores>%d</cores><sockets>%d</sockets><threads>1</threads></topology>", v.cores, v.sockets),
		"memory", fmt.Sprint(v.memory), "memory_policy", fmt.Sprintf("<guaranteed>%d</guaranteed>", v.guaranteed), "reported_devices", reported, "disk_attachments", attached)
	return strings.TrimSuffix(text, "</vm>") + extra + "</vm>"
}

func (e *Engine) getVMs(r *http.Request, _ []byte) answer {
	var all []string
	for _, v := range e.vms {
		if !(filtered(r) && v.others) && matches(r, map[string][]string{
			"name": {v.name}, "description": {v.description}, "comment": {v.comment}, "template": {e.templateName(v.template)}, "tag": e.tagsOf(v),
		}) {
			all = append(all, v.show(r.URL.Query().Get("follow")))
		}
	}
	return collection("vms", all)
}

func (e *Engine) templateName(id string) string {
	if t := find(e.templates, id, func(t *template) string { return t.id }); t != nil {
		return t.name
	}
	return "Blank"
}

func (e *Engine) getVM(r *http.Request, _ []byte) answer {
	v := e.vm(r.PathValue("id"))
	if v == nil {
		return missing()
	}
	return ok(v.show(r.URL.Query().Get("follow")))
}

// vmBody is what of a VM is in a request.
type vmBody struct {
	Name        *string `xml:"name"`
	Description *string `xml:"description"`
	Comment     *string `xml:"comment"`
	Memory      *int64  `xml:"memory"`
	Policy      *struct {
		Guaranteed int64 `xml:"guaranteed"`
	} `xml:"memory_policy"`
	CPU *struct {
		Cores   int `xml:"topology>cores"`
		Sockets int `xml:"topology>sockets"`
	} `xml:"cpu"`
	Cluster        reference `xml:"cluster"`
	Template       reference `xml:"template"`
	Initialization struct {
		Script string `xml:"custom_script"`
	} `xml:"initialization"`
	Disks []struct {
		Disk reference `xml:"disk"`
	} `xml:"disk_attachments>disk_attachment"`
}

func (b vmBody) into(v *vm) {
	for from, to := range map[*string]*string{b.Name: &v.name, b.Description: &v.description, b.Comment: &v.comment} {
		if from != nil {
			*to = *from
		}
	}
	if b.Memory != nil {
		v.memory = *b.Memory
	}
	if b.Policy != nil {
		v.guaranteed = b.Policy.Guaranteed
	}
	if b.CPU != nil {
		v.cores, v.sockets = b.CPU.Cores, b.CPU.Sockets
	}
}

func (e *Engine) addVM(_ *http.Request, body []byte) answer {
	var b vmBody
	if err := xml.Unmarshal(body, &b); err != nil || b.Name == nil || b.Cluster.ID != Cluster {
		return refused(http.StatusBadRequest, "Request syntactically incorrect.")
	}
	if slices.ContainsFunc(e.vms, func(v *vm) bool { return v.name == *b.Name }) {
		return refused(http.StatusConflict, "Cannot add VM. The VM name is already in use, please choose a unique name and try again.")
	}
	if e.quota > 0 && len(e.vms) >= e.quota {
		return refused(http.StatusConflict, "Cannot add VM. Quota does not have sufficient cluster resources.")
	}
	v := &vm{id: newID(), status: "down", cluster: Cluster, sockets: 1, cores: 1, memory: 1 << 30, script: b.Initialization.Script}
	b.into(v)
	for _, d := range b.Disks {
		disk := e.disk(d.Disk.ID)
		if disk == nil || disk.status != "ok" {
			return refused(http.StatusConflict, "Cannot attach Virtual Disk. "+locked)
		}
		v.disks = append(v.disks, disk)
	}
	if b.Template.Name != "Blank" {
		t := find(e.templates, b.Template.ID, func(t *template) string { return t.id })
		if t == nil || t.status != "ok" {
			return refused(http.StatusConflict, "Cannot add VM. The Template is locked. Please try again in a few minutes.")
		}
		d := &disk{id: newID(), name: t.disk.name, description: t.disk.description, size: t.size, status: "locked"} // as the engine names it
		if full := e.full(0); full {                                                                                // a thin clone takes next to nothing
			return refused(http.StatusConflict, "Cannot add VM. Low disk space on Storage Domain data.")
		}
		e.disks, v.disks, v.template, v.status = append(e.disks, d), append(v.disks, d), t.id, "image_locked"
		e.after(e.latency.MakeVM, func() { v.status, d.status = "down", "ok" })
	}
	e.vms = append(e.vms, v)
	pending := 0
	for _, v := range e.vms {
		if v.status != "up" {
			pending++
		}
	}
	e.pending = max(e.pending, pending)
	return answer{http.StatusCreated, v.show("")}
}

// full says that the storage does not hold so many bytes more.
func (e *Engine) full(more int64) bool {
	if e.storage == 0 {
		return false
	}
	have := more
	for _, d := range e.disks {
		have += int64(len(d.content))
	}
	for _, t := range e.templates {
		have += t.size
	}
	return have > e.storage
}

func (e *Engine) putVM(r *http.Request, body []byte) answer {
	v := e.vm(r.PathValue("id"))
	var b vmBody
	switch {
	case v == nil:
		return missing()
	case xml.Unmarshal(body, &b) != nil:
		return refused(http.StatusBadRequest, "Request syntactically incorrect.")
	case v.status == "image_locked":
		return refused(http.StatusConflict, "Cannot edit VM. "+locked)
	}
	b.into(v)
	return ok(v.show(""))
}

func (e *Engine) deleteVM(r *http.Request, _ []byte) answer {
	v := e.vm(r.PathValue("id"))
	switch {
	case v == nil:
		return missing()
	case v.status == "image_locked":
		return refused(http.StatusConflict, "Cannot remove VM: VM is locked. Please try again in a few minutes.")
	case v.status != "down":
		return refused(http.StatusConflict, "Cannot remove VM. VM is running.")
	}
	if r.URL.Query().Get("detach_only") == "true" {
		v.disks = nil
	}
	v.status = "image_locked"
	e.after(e.latency.Remove, func() { e.erase(v) })
	return ok("<action><status>complete</status></action>")
}

var scriptParts = map[string]*regexp.Regexp{
	"key":    regexp.MustCompile(`(?s)-----BEGIN OPENSSH PRIVATE KEY-----.*?-----END OPENSSH PRIVATE KEY-----`),
	"public": regexp.MustCompile(`echo '([^']*)' >/etc/ssh/ssh_host_ed25519_key.pub`),
	"user":   regexp.MustCompile(`keys='/home/([^/]*)/`),
	"login":  regexp.MustCompile(`echo '([^']*)' >>"\$keys"`),
}

// guest is what cloud-init would make of a VM.
func (v *vm) guest() (Guest, error) {
	g := Guest{Name: v.name, ID: v.id, CPUs: v.cores * v.sockets, Memory: v.memory}
	err := g.Read(v.script)
	return g, err
}

// Read has the guest be what cloud-init would make of it with a bed's data.
func (g *Guest) Read(config string) error {
	script, err := bootCommand(config)
	if err != nil {
		return err
	}
	g.HostKey = scriptParts["key"].FindString(script) + "\n"
	for part, to := range map[string]*string{"public": &g.HostPublicKey, "user": &g.User, "login": &g.AuthorizedKey} {
		m := scriptParts[part].FindStringSubmatch(script)
		if m == nil {
			return fmt.Errorf("the cloud-init data has no %s", part)
		}
		*to = m[1]
	}
	if m := regexp.MustCompile(`(?m)^Address=([0-9.]+)/`).FindStringSubmatch(script); m != nil {
		g.Address = m[1]
	}
	if m := regexp.MustCompile(`echo '([^']*)' >/etc/hostname`).FindStringSubmatch(script); m != nil {
		g.Name = m[1]
	}
	return nil
}

func (e *Engine) startVM(r *http.Request, _ []byte) answer {
	v := e.vm(r.PathValue("id"))
	switch {
	case v == nil:
		return missing()
	case v.status == "image_locked":
		return refused(http.StatusConflict, "Cannot run VM: VM is locked. Please try again in a few minutes.")
	case v.status != "down":
		return refused(http.StatusConflict, "Cannot run VM. VM is running.")
	case len(v.disks) == 0 || len(v.nics) == 0:
		return refused(http.StatusConflict, "Cannot run VM without at least one bootable disk.")
	}
	g, err := v.guest()
	if err != nil {
		return refused(http.StatusBadRequest, err.Error())
	}
	v.status = "wait_for_launch"
	if e.launches[v.name] {
		delete(e.launches, v.name)
		return ok("<action><status>complete</status></action>")
	}
	e.after(e.latency.Launch, func() {
		if v.status != "wait_for_launch" {
			return
		}
		v.status = "powering_up"
		go func() {
			address, err := e.backing.Start(context.Background(), g)
			e.mu.Lock()
			defer e.mu.Unlock()
			switch {
			case v.status != "powering_up": // stopped meanwhile
				e.backing.Stop(g.ID)
			case err != nil:
				v.status = "down"
			default:
				v.status, v.address = "up", address
			}
		}()
	})
	return ok("<action><status>complete</status></action>")
}

func (e *Engine) stopVM(r *http.Request, _ []byte) answer {
	v := e.vm(r.PathValue("id"))
	switch {
	case v == nil:
		return missing()
	case v.status == "down" || v.status == "image_locked":
		return refused(http.StatusConflict, "Cannot stop VM. VM is not running.")
	}
	v.status = "powering_down"
	e.after(e.latency.Stop, func() { PowerOff(e, v) })
	return ok("<action><status>complete</status></action>")
}

func (e *Engine) getNICs(r *http.Request, _ []byte) answer {
	v := e.vm(r.PathValue("id"))
	if v == nil {
		return missing()
	}
	var all []string
	for _, n := range v.nics {
		all = append(all, element("nic", "vms/"+v.id+"/nics", n.id, "name", n.name))
	}
	return collection("nics", all)
}

func (e *Engine) addNIC(r *http.Request, body []byte) answer {
	var b struct {
		Name    string    `xml:"name"`
		Profile reference `xml:"vnic_profile"`
	}
	v := e.vm(r.PathValue("id"))
	switch {
	case v == nil:
		return missing()
	case xml.Unmarshal(body, &b) != nil || b.Profile.ID != VnicProfile:
		return refused(http.StatusBadRequest, "The specified vNIC profile does not exist.")
	case v.status == "image_locked":
		return refused(http.StatusConflict, "Cannot add Interface. "+locked)
	case slices.ContainsFunc(v.nics, func(n nic) bool { return n.name == b.Name }):
		return refused(http.StatusConflict, "Cannot add Interface. The Network Interface name "+b.Name+" is already in use.")
	}
	n := nic{newID(), b.Name, b.Profile.ID}
	v.nics = append(v.nics, n)
	return answer{http.StatusCreated, element("nic", "vms/"+v.id+"/nics", n.id, "name", n.name)}
}

func (e *Engine) deleteNIC(r *http.Request, _ []byte) answer {
	v := e.vm(r.PathValue("id"))
	if v == nil {
		return missing()
	}
	v.nics = slices.DeleteFunc(v.nics, func(n nic) bool { return n.id == r.PathValue("nic") })
	return ok("<action><status>complete</status></action>")
}

func (e *Engine) getAttachments(r *http.Request, _ []byte) answer {
	v := e.vm(r.PathValue("id"))
	if v == nil {
		return missing()
	}
	return collection("disk_attachments", attachments(v.disks))
}

func attachments(disks []*disk) (all []string) {
	for _, d := range disks {
		all = append(all, fmt.Sprintf(`<disk_attachment id="%s"><bootable>true</bootable><interface>virtio_scsi</interface>%s</disk_attachment>`, d.id, d.show()))
	}
	return all
}

func (e *Engine) putAttachment(r *http.Request, body []byte) answer {
	var b struct {
		Size int64 `xml:"disk>provisioned_size"`
	}
	d := e.disk(r.PathValue("disk"))
	switch {
	case d == nil:
		return missing()
	case xml.Unmarshal(body, &b) != nil || b.Size < d.size:
		return refused(http.StatusBadRequest, "Cannot edit Virtual Disk. New disk size cannot be smaller than the current.")
	case d.status != "ok":
		return refused(http.StatusConflict, "Cannot edit Virtual Disk: The following disks are locked: "+d.name+". Please try again in a few minutes.")
	}
	d.status = "locked"
	e.after(e.latency.MakeDisk, func() { d.status, d.size = "ok", b.Size })
	return accepted(fmt.Sprintf(`<disk_attachment id="%s"/>`, d.id))
}
