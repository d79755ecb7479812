package bed

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/agext/levenshtein"
)

// Known is what this build can offer; what a configuration names is checked against it.
type Known struct {
	Drivers          []string
	Images           []string
	WorkloadManagers []string
	Kubernetes       []string
}

// Keys are the configuration keys, without the namespace, that every bed understands.
func Keys() []string {
	return []string{
		"name", "driver", "nodes", "cpus", "memory", "disk", "image", "workloadManager", "flux", "kubernetes", "network", "profile",
		"ttl", "pools", "flux.mode", "flux.quorum", "flux.queuePolicy", "flux.matchPolicy", "kubernetes.network", "kubernetes.mtu",
		"ovirt.url", "ovirt.username", "ovirt.password", "ovirt.token", "ovirt.caFile", "ovirt.fingerprint", "ovirt.insecure", "ovirt.dataCenter", "ovirt.cluster",
		"ovirt.storageDomain", "ovirt.vnicProfile", "ovirt.template", "ovirt.addresses", "ovirt.gateway", "ovirt.spread", "ovirt.sockets", "ovirt.guaranteed", "ovirt.concurrency",
		"aws.region", "aws.zone", "aws.instanceType", "aws.threadsPerCore", "aws.efa", "aws.spot", "aws.sshFrom", "aws.ami", "aws.amiOwner", "aws.keepImage",
		"openstack.region", "openstack.flavor", "openstack.externalNetwork", "openstack.sshFrom", "openstack.nameservers", "openstack.image", "openstack.keepImage",
	}
}

// Secret says whether the value of a key is a secret: it is kept encrypted, and nothing shows it. So is that of a key that may be meant for such a one.
func Secret(key string) bool {
	meant := Nearest(key, Keys())
	return meant == "ovirt.password" || meant == "ovirt.token"
}

var namePattern = regexp.MustCompile(`^[a-z]([a-z0-9-]*[a-z0-9])?$`)

// CheckName says what is wrong with a bed's name, or nothing.
func CheckName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("is empty; a bed needs a name")
	case len(name) > NameLength:
		return fmt.Errorf("has %d characters; at most %d are allowed, so that node names fit host names", len(name), NameLength)
	case !namePattern.MatchString(name):
		return fmt.Errorf("must start with a lower-case letter, end with a letter or digit and hold only a-z, 0-9 and - (it becomes host names)")
	}
	return nil
}

// Parse makes a Spec of the configuration values of stack. Every problem is in the result at once; the Spec is of use only when
// there is none. Nothing is looked up on the host.
func Parse(stack string, values map[string]string, known Known) (Spec, Problems) {
	p := parser{values: values}
	p.unknownKeys()
	p.values = maps.Clone(values)
	maps.DeleteFunc(p.values, func(_, value string) bool { return value == "" }) // which takes back what a preset or the file says
	s := Spec{
		Name:            p.text("name", stack),
		Driver:          p.oneOf("driver", "nspawn", known.Drivers),
		Image:           p.oneOf("image", "debian-12", known.Images),
		WorkloadManager: p.oneOf("workloadManager", "slurm", known.WorkloadManagers),
		Kubernetes:      p.oneOf("kubernetes", "none", known.Kubernetes),
		Network:         p.oneOf("network", "isolated", []string{"isolated", "outbound"}),
		Profile:         p.oneOf("profile", "normal", []string{"normal", "slow"}),
		Flux:            p.text("flux", ""),
	}
	if err := CheckName(s.Name); err != nil {
		p.problem("name", s.Name, err.Error(), "choose another with -c name=…")
	}
	if s.Flux != "" && s.WorkloadManager != "flux" {
		p.problem("flux", s.Flux, "names a Flux artifact, and the bed's workload manager is "+s.WorkloadManager, "write -c workloadManager=flux, or take it back with -c flux=")
	}
	s.FluxSettings = p.fluxSettings(s)
	s.Settings = p.driverSettings(s.Driver)
	s.KubernetesNetwork = p.kubernetesNetwork(s)
	if v := p.text("ttl", ""); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d <= 0 {
			p.problem("ttl", v, "is not a length of time", "write hours, minutes or seconds, such as 8h or 90m")
		}
		s.TTL = d
	}
	s.Pools = p.pools()
	if q, computing := s.FluxSettings.Quorum, max(s.Size()-1, 1); q > computing {
		p.problem("flux.quorum", strconv.Itoa(q), fmt.Sprintf("is more than the bed's %d compute nodes", computing), "ask for fewer, or for more nodes")
	}
	if n := s.Size(); n > MaxNodes && len(s.Pools) > 1 {
		p.problem("pools", fmt.Sprint(n), fmt.Sprintf("is more than %d nodes in all", MaxNodes), "ask for fewer")
	}
	sort.SliceStable(p.problems, func(i, j int) bool { return p.problems[i].Key < p.problems[j].Key })
	return s, p.problems
}

// driverSettings are the values of a driver's own keys, without its name before them.
func (p *parser) driverSettings(driver string) map[string]string {
	settings := map[string]string{}
	for key, value := range p.values {
		of, name, _ := strings.Cut(key, ".")
		if !slices.Contains([]string{"ovirt", "aws", "openstack"}, of) || !slices.Contains(Keys(), key) {
			continue
		}
		if of != driver {
			p.problem(key, value, "is about driver "+of+", and the bed's is "+driver, "write -c driver="+of+", or take it back with -c "+key+"=")
			continue
		}
		settings[name] = value
	}
	return settings
}

func (p *parser) fluxSettings(s Spec) (f FluxSettings) {
	for _, key := range []string{"flux.mode", "flux.quorum", "flux.queuePolicy", "flux.matchPolicy"} {
		if v := p.text(key, ""); v != "" && s.WorkloadManager != "flux" {
			p.problem(key, v, "is about Flux, and the bed's workload manager is "+s.WorkloadManager, "write -c workloadManager=flux, or take it back with -c "+key+"=")
			return f
		}
	}
	if v := p.text("flux.quorum", ""); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			p.problem("flux.quorum", v, "is not a number of compute nodes", "write a whole number from 1 on; without it all must come up")
		}
		f.Quorum = n
	}
	if p.text("flux.mode", "") != "" {
		f.Mode = p.oneOf("flux.mode", "", []string{"system", "user"})
	}
	if p.text("flux.queuePolicy", "") != "" {
		f.QueuePolicy = p.oneOf("flux.queuePolicy", "", fluxQueuePolicies())
	}
	if p.text("flux.matchPolicy", "") != "" {
		f.MatchPolicy = p.oneOf("flux.matchPolicy", "", fluxMatchPolicies())
	}
	return f
}

func (p *parser) kubernetesNetwork(s Spec) (n KubernetesNetwork) {
	for _, key := range []string{"kubernetes.network", "kubernetes.mtu"} {
		if v := p.text(key, ""); v != "" && s.Kubernetes == "none" {
			p.problem(key, v, "is about Kubernetes, and the bed has none", "write -c kubernetes=usernetes, or take it back with -c "+key+"=")
		}
	}
	if s.Kubernetes == "none" {
		return n
	}
	n = DefaultKubernetesNetwork()
	if p.text("kubernetes.network", "") != "" {
		n.Driver = p.oneOf("kubernetes.network", "", KubernetesNetworkDrivers())
		n.MTU = defaultKubernetesMTU(n.Driver)
	}
	if v := p.text("kubernetes.mtu", ""); v != "" {
		var err error
		if n.MTU, err = strconv.Atoi(v); err != nil || n.MTU < minKubernetesMTU || n.MTU > maxKubernetesMTU {
			p.problem("kubernetes.mtu", v, fmt.Sprintf("is not a number of bytes from %d to %d", minKubernetesMTU, maxKubernetesMTU), "write such a number, or leave it to the network with -c kubernetes.mtu=")
		}
	}
	return n
}

type parser struct {
	values   map[string]string
	problems Problems
}

func (p *parser) problem(key, value, reason, remedy string) {
	if Secret(key) {
		value = ""
	}
	p.problems = append(p.problems, Problem{Key: key, Value: value, Reason: reason, Remedy: remedy})
}

func (p *parser) text(key, fallback string) string {
	if v, ok := p.values[key]; ok {
		return v
	}
	return fallback
}

func (p *parser) oneOf(key, fallback string, known []string) string {
	v := p.text(key, fallback)
	if !slices.Contains(known, v) {
		p.problem(key, v, "is not known here; there is "+strings.Join(known, ", "), suggestion(key, v, known))
	}
	return v
}

func suggestion(key, v string, known []string) string {
	if n := Nearest(v, known); n != "" {
		return fmt.Sprintf("did you mean %s? write -c %s=%s", n, key, n)
	}
	return fmt.Sprintf("choose one of them with -c %s=…", key)
}

// Nearest is the known word most like v, empty when none is like it.
func Nearest(v string, known []string) string {
	best, bestScore := "", 0.55
	for _, k := range known {
		if score := levenshtein.Match(strings.ToLower(v), strings.ToLower(k), nil); score > bestScore {
			best, bestScore = k, score
		}
	}
	return best
}

func (p *parser) unknownKeys() {
	for key, value := range p.values {
		if slices.Contains(Keys(), key) {
			continue
		}
		remedy := "the keys are " + strings.Join(Keys(), ", ")
		if n := Nearest(key, Keys()); n != "" {
			remedy = "did you mean " + n + "?"
		}
		p.problem(key, value, "is not a configuration key", remedy)
	}
}

// pools reads either the key pools or the four keys of a bed of like machines.
func (p *parser) pools() []Pool {
	raw, asPools := p.values["pools"]
	if !asPools {
		return []Pool{p.pool("", p.values)}
	}
	for _, key := range []string{"nodes", "cpus", "memory", "disk"} {
		if v, ok := p.values[key]; ok {
			p.problem(key, v, "cannot stand beside the key pools", "put it into each pool and take it back with -c "+key+"=, or drop the pools with -c pools=")
		}
	}
	var entries []map[string]any
	if err := json.Unmarshal([]byte(raw), &entries); err != nil || len(entries) == 0 {
		p.problem("pools", raw, "is not a list of pools", `write a list such as [{"name":"big","nodes":2,"cpus":4,"memory":"8GiB"}]`)
		return nil
	}
	var pools []Pool
	names := map[string]bool{}
	for i, entry := range entries {
		at := fmt.Sprintf("pools[%d].", i)
		values := map[string]string{}
		for key, v := range entry {
			known := []string{"name", "type", "nodes", "cpus", "memory", "disk"}
			if !slices.Contains(known, key) {
				p.problem(at+key, fmt.Sprint(v), "is not a key of a pool", "the keys are "+strings.Join(known, ", "))
			}
			values[key] = fmt.Sprint(v)
		}
		name := values["name"]
		if err := CheckName(name); err != nil {
			p.problem(at+"name", name, err.Error(), "give each pool a name of its own")
		} else if names[name] {
			p.problem(at+"name", name, "is the name of another pool too", "give each pool a name of its own")
		}
		names[name] = true
		pools = append(pools, p.pool(at, values))
		pools[i].Name, pools[i].Type = name, values["type"]
	}
	return pools
}

func (p *parser) pool(at string, values map[string]string) Pool {
	number := func(key, fallback string, limit int) int {
		v, ok := values[key]
		if !ok {
			v = fallback
		}
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > limit {
			p.problem(at+key, v, fmt.Sprintf("must be a whole number from 1 to %d", limit), "write such a number")
			return 1
		}
		return n
	}
	size := func(key, fallback string, least Size) Size {
		v, ok := values[key]
		if !ok && fallback == "" {
			return 0
		}
		if !ok {
			v = fallback
		}
		n, err := ParseSize(v)
		if err != nil {
			p.problem(at+key, v, err.Error(), "write for example 2GiB")
		} else if n < least {
			p.problem(at+key, v, fmt.Sprintf("is less than %s, with which no node boots", least), "ask for more")
		}
		return n
	}
	return Pool{
		Name:  "nodes",
		Nodes: number("nodes", "3", MaxNodes), CPUs: number("cpus", "1", MaxCPUs),
		Memory: size("memory", "1GiB", MinMemory), Disk: size("disk", "", GiB),
	}
}
