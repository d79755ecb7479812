package enginetest

import (
	"fmt"
	"slices"
)

// ByHand is what an administrator does to a VM.
type ByHand func(e *Engine, v *vm)

// PowerOff, Rename and Resize are done at once, whatever the VM is doing.
func PowerOff(e *Engine, v *vm) {
	e.backing.Stop(v.id)
	v.status, v.address, v.stopped = "down", "", true
}

// Rename calls a VM otherwise.
func Rename(to string) ByHand { return func(_ *Engine, v *vm) { v.name = to } }

// Resize gives a VM other CPUs and memory.
func Resize(cpus int, memory int64) ByHand {
	return func(_ *Engine, v *vm) { v.sockets, v.cores, v.memory = 1, cpus, memory }
}

// Rearrange has a VM's CPUs be on so many sockets.
func Rearrange(sockets int) ByHand {
	return func(_ *Engine, v *vm) { v.sockets, v.cores = sockets, v.sockets*v.cores/sockets }
}

// Guarantee changes how many bytes of its memory a VM always has.
func Guarantee(memory int64) ByHand { return func(_ *Engine, v *vm) { v.guaranteed = memory } }

// Enlarge gives a VM's disks a size in bytes.
func Enlarge(size int64) ByHand {
	return func(_ *Engine, v *vm) {
		for _, d := range v.disks {
			d.size = size
		}
	}
}

// Untag takes all tags off a VM.
func Untag(_ *Engine, v *vm) { v.tags = nil }

// RemoveTags removes a VM's tags from the engine.
func RemoveTags(e *Engine, v *vm) {
	e.tags = slices.DeleteFunc(e.tags, func(t *tag) bool { return slices.Contains(v.tags, t.name) })
	Untag(e, v)
}

// Ungroup takes a VM out of all affinity groups.
func Ungroup(e *Engine, v *vm) {
	for _, g := range e.groups {
		g.vms = slices.DeleteFunc(g.vms, func(id string) bool { return id == v.id })
	}
}

// RemoveGroups removes the affinity groups that a VM is in.
func RemoveGroups(e *Engine, v *vm) {
	e.groups = slices.DeleteFunc(e.groups, func(g *group) bool { return slices.Contains(g.vms, v.id) })
}

// Describe changes a VM's description.
func Describe(text string) ByHand { return func(_ *Engine, v *vm) { v.description = text } }

// Comment changes what a VM's comment says.
func Comment(text string) ByHand { return func(_ *Engine, v *vm) { v.comment = text } }

// Clone makes a copy of a VM with all that is written on it, switched off.
func Clone(name string) ByHand {
	return func(e *Engine, v *vm) {
		copied := *v
		copied.id, copied.name, copied.status, copied.address, copied.disks = newID(), name, "down", "", nil
		e.vms = append([]*vm{&copied}, e.vms...)
	}
}

// Erase removes a VM with its disks.
func Erase(e *Engine, v *vm) {
	PowerOff(e, v)
	e.erase(v)
}

// Several does one after the other.
func Several(all ...ByHand) ByHand {
	return func(e *Engine, v *vm) {
		for _, do := range all {
			do(e, v)
		}
	}
}

// Do has an administrator do something to a VM by its name.
func (e *Engine) Do(name string, what ByHand) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.settle()
	for _, v := range e.vms {
		if v.name == name {
			what(e, v)
			return true
		}
	}
	return false
}

// AddVM makes a VM that is nobody's of ours.
func (e *Engine) AddVM(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.vms = append(e.vms, &vm{id: newID(), name: name, status: "down", cluster: Cluster, sockets: 1, cores: 1, memory: 1 << 30, others: true})
}

// AddVersion makes a template, or one more version of it, of what is on the disk of the first template there is.
func (e *Engine) AddVersion(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := &template{id: newID(), name: name, status: "ok", version: 1, size: e.templates[0].size, disk: e.templates[0].disk}
	for _, o := range e.templates {
		if o.name == name {
			t.version++
		}
	}
	e.templates = append([]*template{t}, e.templates...)
}

// MadeOf is the template that a VM was made of, as NAME:VERSION.
func (e *Engine) MadeOf(name string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	v := find(e.vms, name, func(v *vm) string { return v.name })
	t := find(e.templates, v.template, func(t *template) string { return t.id })
	return fmt.Sprintf("%s:%d", t.name, t.version)
}

// Tagged are the VMs that have a tag, by name.
func (e *Engine) Tagged(tag string) (names []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, v := range e.vms {
		if slices.Contains(e.tagsOf(v), tag) {
			names = append(names, v.name)
		}
	}
	slices.Sort(names)
	return names
}

// Members are the VMs of an affinity group, by name.
func (e *Engine) Members(group string) (names []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, g := range e.groups {
		for _, id := range g.vms {
			if g.name == group {
				names = append(names, e.vm(id).name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// Pending is how many VMs were on their way up at once, at most, since it was last asked.
func (e *Engine) Pending() (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n, e.pending = e.pending, 0
	return n
}
