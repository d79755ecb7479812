package clouds

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"github.com/bedfellow/bedfellow/pkg/bed"
)

// typeOf finds a type in this package's list.
func typeOf(cloud, name string) (Type, bool) {
	p, err := ReadPrices("")
	if err != nil {
		return Type{}, false
	}
	t, ok := p.Clouds[cloud].Types[name]
	return t, ok
}

// TypeKey is the cloud's own key that says of what type machines are, without its name.
func TypeKey(cloud string) string {
	return map[string]string{"aws": "instanceType", "openstack": "flavor"}[cloud]
}

// typeName is the type of a pool's machines, and the key that says so.
func typeName(spec bed.Spec, pool int) (name, key string) {
	key = TypeKey(spec.Driver)
	said, all := spec.Pools[pool].Type, spec.Settings[key]
	if said != "" && said != all {
		return said, fmt.Sprintf("pools[%d].type", pool)
	}
	return all, spec.Driver + "." + key
}

// saying is a pool's key of that name, and how to give it a value.
func saying(spec bed.Spec, pool int, name string, value any) (key, remedy string) {
	if len(spec.Pools) == 1 {
		return name, fmt.Sprintf("write -c %s=%v", name, value)
	}
	return fmt.Sprintf("pools[%d].%s", pool, name), fmt.Sprintf("write %v there", value)
}

// computes tells whether any of the pool's nodes do: not if it is the control node's own.
func computes(spec bed.Spec, pool int) bool {
	return pool > 0 || spec.Pools[pool].Nodes > 1 || spec.Size() == 1
}

// once appends what is not in the list yet: pools can have a problem in common.
func once(problems []bed.Problem, more ...bed.Problem) []bed.Problem {
	for _, p := range more {
		if !slices.Contains(problems, p) {
			problems = append(problems, p)
		}
	}
	return problems
}

// checkType finds what is wrong with the type of a pool's machines, as far as this package's list tells.
func checkType(spec bed.Spec, pool int) bed.Problems {
	name, key := typeName(spec, pool)
	t, ok := typeOf(spec.Driver, name)
	switch {
	case spec.Driver == "aws" && !awsType.MatchString(name):
		return bed.Problems{{Key: key, Value: name, Reason: "is not a type of instance", Remedy: "write such as c7i.2xlarge"}}
	case spec.Driver == "openstack" && name == "":
		return bed.Problems{{Key: key, Reason: "is not set", Remedy: "write -c openstack.flavor=NAME; `openstack flavor list` shows them"}}
	case spec.Settings["efa"] == "true" && ok && !t.EFA && computes(spec, pool):
		return bed.Problems{{Key: key, Value: name, Reason: "has no Elastic Fabric Adapter, which aws.efa asks for",
			Remedy: "choose a type that has one, such as hpc7g.4xlarge or c7i.48xlarge, or write -c aws.efa=false"}}
	}
	return nil
}

// Shape gives a bed's machines their type, and the CPUs and memory that it has. A configuration that says something else is wrong, and one of
// a type that the list does not have must say both. values are the configuration's.
func Shape(spec *bed.Spec, values map[string]string) (problems bed.Problems) {
	if !Is(spec.Driver) {
		return nil
	}
	var entries []map[string]any
	_ = json.Unmarshal([]byte(values["pools"]), &entries) // what is wrong with it has been told
	for i := range spec.Pools {
		said := func(key string) (at, value string) { return key, values[key] }
		if len(entries) > 0 {
			said = func(key string) (at, value string) {
				if v, ok := entries[i][key]; ok {
					value = fmt.Sprint(v)
				}
				return fmt.Sprintf("pools[%d].%s", i, key), value
			}
		}
		problems = once(problems, shape(spec, i, said)...)
	}
	return problems
}

// shape does so for one pool. said is what the configuration says of it, and at which key.
func shape(spec *bed.Spec, i int, said func(key string) (at, value string)) (problems bed.Problems) {
	name, typeKey := typeName(*spec, i)
	pool := &spec.Pools[i]
	pool.Type = name
	t, ok := typeOf(spec.Driver, name)
	if !ok {
		for _, key := range []string{"cpus", "memory"} {
			if at, value := said(key); value == "" && name != "" {
				problems = append(problems, bed.Problem{Key: at, Reason: "is not set, and this build's list has no type " + name, Remedy: "write what a machine of that type has"})
			}
		}
		return problems
	}
	cpus, memory := t.VCPUs, bed.Size(t.MemoryGiB)*bed.GiB
	switch threads, _ := strconv.Atoi(spec.Settings["threadsPerCore"]); {
	case threads < 1 || threads > 2: // not said, or wrong whatever the type
	case threads <= t.ThreadsPerCore:
		cpus = t.VCPUs / t.ThreadsPerCore * threads
	default:
		problems = append(problems, bed.Problem{Key: spec.Driver + ".threadsPerCore", Value: spec.Settings["threadsPerCore"], Reason: "is more than a core of " + name + " has", Remedy: "leave it out"})
	}
	if at, value := said("cpus"); value != "" && pool.CPUs != cpus {
		problems = append(problems, bed.Problem{Key: at, Value: value, Reason: fmt.Sprintf("is not what a %s has, which is %d", name, cpus), Remedy: "leave it out, or choose another " + typeKey})
	}
	if at, value := said("memory"); value != "" && pool.Memory != memory {
		problems = append(problems, bed.Problem{Key: at, Value: value, Reason: fmt.Sprintf("is not what a %s has, which is %s", name, memory), Remedy: "leave it out, or choose another " + typeKey})
	}
	pool.CPUs, pool.Memory = cpus, memory
	return problems
}
