package enginetest

import (
	"encoding/xml"
	"net/http"
	"slices"
)

func (e *Engine) getTags(*http.Request, []byte) answer {
	var all []string
	for _, t := range e.tags {
		all = append(all, element("tag", "tags", t.id, "name", t.name, "description", t.description))
	}
	return collection("tags", all)
}

func (e *Engine) addTag(_ *http.Request, body []byte) answer {
	var b struct {
		Name        string `xml:"name"`
		Description string `xml:"description"`
	}
	if err := xml.Unmarshal(body, &b); err != nil || slices.ContainsFunc(e.tags, func(t *tag) bool { return t.name == b.Name }) {
		return refused(http.StatusConflict, "Cannot add Tag. The Tag name is already in use.")
	}
	t := &tag{newID(), b.Name, b.Description}
	e.tags = append(e.tags, t)
	return answer{http.StatusCreated, element("tag", "tags", t.id, "name", t.name, "description", t.description)}
}

func (e *Engine) deleteTag(r *http.Request, _ []byte) answer {
	n := len(e.tags)
	e.tags = slices.DeleteFunc(e.tags, func(t *tag) bool { return t.id == r.PathValue("id") })
	if len(e.tags) == n {
		return missing()
	}
	return ok("<action><status>complete</status></action>")
}

func (e *Engine) getGroups(r *http.Request, _ []byte) answer {
	var all []string
	for _, g := range e.groups {
		all = append(all, element("affinity_group", "clusters/"+g.cluster+"/affinitygroups", g.id, "name", g.name, "description", g.description))
	}
	return collection("affinity_groups", all)
}

func (e *Engine) group(r *http.Request) *group {
	return find(e.groups, r.PathValue("id"), func(g *group) string { return g.id })
}

func (e *Engine) addGroup(r *http.Request, body []byte) answer {
	var b struct {
		Name        string `xml:"name"`
		Description string `xml:"description"`
		Positive    *bool  `xml:"vms_rule>positive"`
	}
	if err := xml.Unmarshal(body, &b); err != nil || b.Positive == nil || slices.ContainsFunc(e.groups, func(g *group) bool { return g.name == b.Name }) {
		return refused(http.StatusConflict, "Cannot add Affinity Group. Affinity Group name already exists.")
	}
	g := &group{id: newID(), name: b.Name, description: b.Description, cluster: r.PathValue("cluster")}
	e.groups = append(e.groups, g)
	return answer{http.StatusCreated, element("affinity_group", "clusters/"+g.cluster+"/affinitygroups", g.id, "name", g.name)}
}

func (e *Engine) deleteGroup(r *http.Request, _ []byte) answer {
	g := e.group(r)
	if g == nil {
		return missing()
	}
	e.groups = slices.DeleteFunc(e.groups, func(o *group) bool { return o == g })
	return ok("<action><status>complete</status></action>")
}

func (e *Engine) getMembers(r *http.Request, _ []byte) answer {
	g := e.group(r)
	if g == nil {
		return missing()
	}
	var all []string
	for _, id := range g.vms {
		all = append(all, link("vm", "vms", id))
	}
	return collection("vms", all)
}

func (e *Engine) addMember(r *http.Request, body []byte) answer {
	var b reference
	g := e.group(r)
	if g == nil || xml.Unmarshal(body, &b) != nil || e.vm(b.ID) == nil {
		return missing()
	}
	if slices.Contains(g.vms, b.ID) {
		return refused(http.StatusConflict, "Cannot edit Affinity Group. VM is already a member.")
	}
	g.vms = append(g.vms, b.ID)
	return ok(link("vm", "vms", b.ID))
}

func (e *Engine) getVMTags(r *http.Request, _ []byte) answer {
	v := e.vm(r.PathValue("id"))
	if v == nil {
		return missing()
	}
	var all []string
	for _, t := range e.tags {
		if slices.Contains(v.tags, t.name) {
			all = append(all, element("tag", "tags", t.id, "name", t.name))
		}
	}
	return collection("tags", all)
}

func (e *Engine) tagsOf(v *vm) (names []string) {
	for _, t := range e.tags {
		if slices.Contains(v.tags, t.name) {
			names = append(names, t.name)
		}
	}
	return names
}

func (e *Engine) tagVM(r *http.Request, body []byte) answer {
	var b reference
	v := e.vm(r.PathValue("id"))
	if v == nil || xml.Unmarshal(body, &b) != nil {
		return missing()
	}
	t := find(e.tags, b.Name, func(t *tag) string { return t.name })
	if t == nil {
		return missing()
	}
	if !slices.Contains(v.tags, t.name) {
		v.tags = append(v.tags, t.name)
	}
	return answer{http.StatusCreated, element("tag", "tags", t.id, "name", t.name)}
}
