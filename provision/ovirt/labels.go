package ovirt

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	ovirtsdk "github.com/ovirt/go-ovirt"
)

// shared is what a bed's tag and its affinity group are called.
func shared(bedName string) string { return "bedfellow-" + bedName }

// labels are the VMs, by id, that have a bed's tag, and those that are in its affinity group.
type labels struct {
	looked          time.Time
	tagged, grouped map[string]bool
}

// lack is what a VM lacks of the labels that it is to have.
type lack struct {
	tag, group bool
	leave      bool // it is in the group, and is not to be
	name       string
}

// unlabelled is what one lacks that was just made.
var unlabelled = lack{tag: true, group: true}

// String is empty for one that lacks nothing.
func (l lack) String() string {
	var all []string
	if l.tag {
		all = append(all, "has lost the tag "+l.name)
	}
	switch {
	case l.group && l.leave:
		all = append(all, "is in the affinity group "+l.name+", and nodes are not to be spread")
	case l.group:
		all = append(all, "is not in the affinity group "+l.name)
	}
	return strings.Join(all, "; ")
}

// lacks looks at what labels a VM has, no longer ago than a poll takes: those who ask at one time share a look. A user who is shown none is told
// that it lacks none.
func (d *Driver) lacks(ctx context.Context, c *client, cluster, bedName, id string) (lack, error) {
	d.labelling.Lock()
	defer d.labelling.Unlock()
	key := cluster + "/" + bedName
	have := d.labels[key]
	if now := time.Now(); now.Sub(have.looked) >= d.timing.poll {
		var err error
		if have, err = c.labels(ctx, cluster, shared(bedName)); err != nil {
			return lack{}, fmt.Errorf("look for the bed's tag and affinity group: %w", err)
		}
		have.looked = now
		d.labels[key] = have
	}
	if have.tagged == nil {
		return lack{}, nil
	}
	return lack{tag: !have.tagged[id], group: have.grouped[id] != d.settings.Spread, leave: have.grouped[id], name: shared(bedName)}, nil
}

// labels are those of a name; without maps for a user who is shown none.
func (c *client) labels(ctx context.Context, cluster, name string) (have labels, err error) {
	defer func() {
		if c.filtered.Load() && (err == nil || adminsOnly(err)) { // what is filtered is not searched
			have, err = labels{}, nil
		}
	}()
	if c.filtered.Load() {
		return have, nil
	}
	ids := func(path string, query url.Values) (map[string]bool, error) {
		data, err := c.call(ctx, http.MethodGet, path, query, nil)
		vms, err := many(data, err, ovirtsdk.XMLVmReadMany)
		all := map[string]bool{}
		if err == nil {
			for _, vm := range vms.Slice() {
				all[idOf(vm)] = true
			}
		}
		return all, ignoreNotFound(err) // a group that goes this moment is gone
	}
	if have.tagged, err = ids("/vms", search("tag", name)); err != nil {
		return have, err
	}
	have.grouped = map[string]bool{}
	path := "/clusters/" + cluster + "/affinitygroups"
	group, err := byName(c, path, nil, name, ovirtsdk.XMLAffinityGroupReadMany, (*ovirtsdk.AffinityGroupSlice).Slice)(ctx)
	if err == nil && group != "" {
		have.grouped, err = ids(path+"/"+group+"/vms", nil)
	}
	return have, err
}

// label gives a VM what it lacks: its bed's tag, and a place in the group that spreads the bed over hosts. Both are made with the bed's first node,
// and go with its last: which may have been another's failure a moment ago. They are administrators' to see and to make.
func (d *Driver) label(ctx context.Context, c *client, at place, id, bedName string, lacks lack) error {
	if c.filtered.Load() || !lacks.tag && !lacks.group {
		return nil
	}
	err := d.labelled(ctx, c, at, id, bedName, lacks)
	if notFound(err) {
		d.labelling.Lock()
		delete(d.groups, bedName)
		d.labelling.Unlock()
		err = d.labelled(ctx, c, at, id, bedName, lacks)
	}
	if adminsOnly(err) {
		return nil
	}
	d.labelling.Lock()
	defer d.labelling.Unlock()
	if have := d.labels[at.cluster+"/"+bedName]; err == nil && have.tagged != nil { // by a look of before this
		have.tagged[id], have.grouped[id] = true, d.settings.Spread
	}
	return err
}

func (d *Driver) labelled(ctx context.Context, c *client, at place, id, bedName string, lacks lack) error {
	d.labelling.Lock() // nodes of one bed are made at once
	err := d.shared(ctx, c, at, bedName)
	group := d.groups[bedName]
	d.labelling.Unlock()
	if err != nil {
		return err
	}
	if lacks.tag {
		tag, err := written(ovirtsdk.NewTagBuilder().Name(shared(bedName)).MustBuild(), ovirtsdk.XMLTagWriteOne)
		if err != nil {
			return err
		}
		if err := c.ensure(ctx, "/vms/"+id+"/tags", tag, byName(c, "/vms/"+id+"/tags", nil, shared(bedName), ovirtsdk.XMLTagReadMany, (*ovirtsdk.TagSlice).Slice)); err != nil {
			return fmt.Errorf("tag it: %w", err)
		}
	}
	if !lacks.group || group == "" {
		return nil
	}
	path := "/clusters/" + at.cluster + "/affinitygroups/" + group + "/vms"
	member := []byte(`<vm id="` + id + `"/>`)
	look := func(ctx context.Context) (string, error) {
		data, err := c.call(ctx, http.MethodGet, path, nil, nil)
		vms, err := many(data, err, ovirtsdk.XMLVmReadMany)
		if err != nil || !slices.ContainsFunc(vms.Slice(), func(vm *ovirtsdk.Vm) bool { return idOf(vm) == id }) {
			return "", err
		}
		return id, nil
	}
	if err := c.ensure(ctx, path, member, look); err != nil {
		return fmt.Errorf("put it into the bed's affinity group: %w", err)
	}
	return nil
}

// shared makes a bed's tag and affinity group, unless they are there; a group that is not wanted any more it removes. The caller holds the mutex.
func (d *Driver) shared(ctx context.Context, c *client, at place, bedName string) error {
	if _, done := d.groups[bedName]; done {
		return nil
	}
	name := shared(bedName)
	make := func(path string, body []byte, look func(context.Context) (string, error)) (string, error) {
		if id, err := look(ctx); err != nil || id != "" {
			return id, err
		}
		return c.create(ctx, path, body, look)
	}
	tag, err := written(ovirtsdk.NewTagBuilder().Name(name).Description(about(bedName)).MustBuild(), ovirtsdk.XMLTagWriteOne)
	if err != nil {
		return err
	}
	if _, err := make("/tags", tag, byName(c, "/tags", nil, name, ovirtsdk.XMLTagReadMany, (*ovirtsdk.TagSlice).Slice)); err != nil {
		return fmt.Errorf("make the bed's tag: %w", err)
	}
	path := "/clusters/" + at.cluster + "/affinitygroups"
	look := byName(c, path, nil, name, ovirtsdk.XMLAffinityGroupReadMany, (*ovirtsdk.AffinityGroupSlice).Slice)
	group := ""
	if d.settings.Spread {
		// Apart, as far as there are hosts: a bed of more nodes than hosts must come up too.
		body, err := written(ovirtsdk.NewAffinityGroupBuilder().Name(name).Description(about(bedName)).
			VmsRule(ovirtsdk.NewAffinityRuleBuilder().Enabled(true).Enforcing(false).Positive(false).MustBuild()).MustBuild(), ovirtsdk.XMLAffinityGroupWriteOne)
		if err != nil {
			return err
		}
		if group, err = make(path, body, look); err != nil {
			return fmt.Errorf("make the bed's affinity group: %w", err)
		}
	} else {
		id, err := look(ctx)
		if err == nil && id != "" {
			_, err = c.call(ctx, http.MethodDelete, path+"/"+id, nil, nil)
		}
		if ignoreNotFound(err) != nil {
			return fmt.Errorf("remove the bed's affinity group: %w", err)
		}
	}
	d.groups[bedName] = group
	return nil
}

// marked are the beds of which the engine has a tag, and those of which it has an affinity group in any cluster; by paths. It shows them to
// administrators only.
func (d *Driver) marked(ctx context.Context, c *client) (tags, groups map[string]string, err error) {
	tags, groups = map[string]string{}, map[string]string{}
	if c.filtered.Load() {
		return tags, groups, nil
	}
	defer func() {
		if adminsOnly(err) {
			err = nil
		}
	}()
	note := func(in map[string]string, path string, id string, description string) {
		if bedName, ours := strings.CutPrefix(description, about("")); ours {
			in[bedName] = path + "/" + id
		}
	}
	data, err := c.call(ctx, http.MethodGet, "/tags", nil, nil)
	allTags, err := many(data, err, ovirtsdk.XMLTagReadMany)
	if err != nil {
		return nil, nil, err
	}
	for _, t := range allTags.Slice() {
		description, _ := t.Description()
		note(tags, "/tags", idOf(t), description)
	}
	data, err = c.call(ctx, http.MethodGet, "/clusters", nil, nil)
	clusters, err := many(data, err, ovirtsdk.XMLClusterReadMany)
	if err != nil {
		return nil, nil, err
	}
	for _, cluster := range clusters.Slice() {
		path := "/clusters/" + idOf(cluster) + "/affinitygroups"
		data, err = c.call(ctx, http.MethodGet, path, nil, nil)
		allGroups, err := many(data, err, ovirtsdk.XMLAffinityGroupReadMany)
		if err != nil {
			return nil, nil, err
		}
		for _, g := range allGroups.Slice() {
			description, _ := g.Description()
			note(groups, path, idOf(g), description)
		}
	}
	return tags, groups, nil
}

// unlabel removes what a bed's nodes shared.
func (d *Driver) unlabel(ctx context.Context, bedName string) error {
	c, err := d.connected(ctx)
	if err != nil {
		return err
	}
	d.labelling.Lock()
	defer d.labelling.Unlock()
	delete(d.groups, bedName)
	clear(d.labels)
	tags, groups, err := d.marked(ctx, c)
	if err != nil {
		return err
	}
	for _, path := range []string{groups[bedName], tags[bedName]} {
		if path != "" {
			_, errDelete := c.call(ctx, http.MethodDelete, path, nil, nil)
			err = errors.Join(err, ignoreNotFound(errDelete))
		}
	}
	return err
}
