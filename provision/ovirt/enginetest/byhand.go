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
	t := &template{id: newID(), name: name, status: "ok", version: 1, disk: e.templates[0].disk}
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
