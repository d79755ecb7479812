//go:build clouds

package stacks_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/clouds"
	"github.com/bedfellow/bedfellow/stacks"
)

var update = flag.Bool("update", false, "write the golden files anew")

// made is one resource that a program has registered.
type made struct {
	kind, name, parent string
	inputs             resource.PropertyMap
	custom             bool
	provider           string
	aliases            []string
	needs              []string // what it depends on, as kind and name
	kept               bool     // when it is to be removed
	known              []string // what others may know it by: its id, and what the cloud calls it
}

// fakeClouds answer as the engine with the providers of clouds would, and keep the whole graph.
type fakeClouds struct {
	fakeEngine
	since time.Time // when the bed's keys were made
	graph []made
}

func (f *fakeClouds) Call(args pulumi.MockCallArgs) (resource.PropertyMap, error) {
	out := args.Args.Copy()
	switch args.Token {
	case "aws:ec2/getAmi:getAmi":
		out["id"], out["rootDeviceName"] = args.Args["filters"].ArrayValue()[0].ObjectValue()["values"].ArrayValue()[0], resource.NewProperty("/dev/sda1")
	default:
		out["id"] = resource.NewProperty("id-of-" + args.Args["name"].StringValue())
	}
	return out, nil
}

// keep notes what the program has registered.
func (f *fakeClouds) keep(args pulumi.MockResourceArgs) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := made{kind: args.TypeToken, name: args.Name, inputs: args.Inputs, custom: args.Custom, provider: args.Provider}
	if rpc := args.RegisterRPC; rpc != nil {
		m.parent = rpc.GetParent()[strings.LastIndex(rpc.GetParent(), ":")+1:]
		for _, a := range rpc.GetAliases() {
			m.aliases = append(m.aliases, a.GetSpec().GetName())
		}
		for _, urn := range rpc.GetDependencies() {
			m.needs = append(m.needs, fmt.Sprint(resource.URN(urn).Type(), " ", resource.URN(urn).Name()))
		}
		m.kept = rpc.GetRetainOnDelete()
	}
	f.graph = append(f.graph, m)
}

func (f *fakeClouds) NewResource(args pulumi.MockResourceArgs) (string, resource.PropertyMap, error) {
	id, out, err := f.fakeEngine.NewResource(args)
	f.keep(args)
	switch args.TypeToken {
	case "bedfellow:index:Keys":
		out["made"] = resource.NewProperty(f.since.UTC().Format(time.RFC3339))
		private := resource.PropertyMap{}
		for _, n := range args.Inputs["nodes"].ArrayValue() {
			private[resource.PropertyKey(n.StringValue())] = resource.NewProperty("the host key of " + n.StringValue())
		}
		out["hostKeys"] = resource.MakeSecret(resource.NewProperty(private))
	case "aws:ec2/instance:Instance":
		n := args.Name[len(args.Name)-2:]
		out["publicIp"], out["privateIp"] = resource.NewProperty("192.0.2.1"+n), resource.NewProperty("10.106.0.1"+n)
	case "aws:ec2/launchTemplate:LaunchTemplate":
		out["latestVersion"] = resource.NewProperty(3.0)
	case "aws:s3/bucket:Bucket":
		out["arn"] = resource.NewProperty("arn:aws:s3:::" + args.Inputs["bucket"].StringValue())
	case "openstack:networking/port:Port":
		out["allFixedIps"] = resource.NewProperty([]resource.PropertyValue{resource.NewProperty("10.106.1.1" + strings.TrimSuffix(args.Name, "-port")[len(args.Name)-7:])})
	case "openstack:networking/floatingIp:FloatingIp":
		out["address"] = resource.NewProperty("192.0.2.9")
	}
	for _, named := range []resource.PropertyKey{"name", "keyName"} {
		if _, ok := out[named]; !ok {
			out[named] = resource.NewProperty(args.Name + "-auto")
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.IndexFunc(f.graph, func(m made) bool { return m.kind == args.TypeToken && m.name == args.Name })
	f.graph[i].known = append(f.graph[i].known, id)
	for _, key := range []resource.PropertyKey{"name", "keyName", "bucket", "arn", "address"} {
		if v := out[key]; v.IsString() {
			f.graph[i].known = append(f.graph[i].known, v.StringValue())
		}
	}
	return id, out, err
}

// all are the resources of a kind.
func (f *fakeClouds) all(kind string) (found []made) {
	for _, m := range f.graph {
		if m.kind == kind {
			found = append(found, m)
		}
	}
	return found
}

// cloudProgram runs the program of a stack with that configuration, whose keys were made then.
func cloudProgram(values map[string]string, since time.Time) (*fakeClouds, error) {
	f := &fakeClouds{fakeEngine: fakeEngine{made: map[string]resource.PropertyMap{}, by: map[string]string{}}, since: since}
	return f, run(values, pulumi.WithMocks("bedfellow", "cloud", f))
}

// run runs the program of a stack with that configuration.
func run(values map[string]string, options ...pulumi.RunOption) error {
	config := map[string]string{}
	for key, value := range values {
		config["bedfellow:"+key] = value
	}
	text, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if err := os.Setenv(pulumi.EnvConfig, string(text)); err != nil {
		return err
	}
	defer os.Unsetenv(pulumi.EnvConfig)
	return pulumi.RunErr(stacks.ProgramIn("file:///state"), options...)
}

// preset is a preset's configuration.
func preset(t require.TestingT, name string, more map[string]string) map[string]string {
	data, ok := stacks.Preset(name)
	require.True(t, ok, name)
	values := map[string]string{}
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && strings.HasPrefix(key, "bedfellow:") {
			values[strings.TrimPrefix(key, "bedfellow:")] = strings.Trim(value, `"`)
		}
	}
	for key, value := range more {
		values[key] = value
	}
	return values
}

// untagged are what a cloud gives no tags to: parts of what has some, which go with it or by its name.
var untagged = []string{
	"aws:ec2/routeTableAssociation:RouteTableAssociation", "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock", "aws:iam/rolePolicy:RolePolicy",
	"openstack:networking/routerInterface:RouterInterface", "openstack:networking/secGroupRule:SecGroupRule", "openstack:networking/floatingIpAssociate:FloatingIpAssociate",
	"openstack:compute/keypair:Keypair", "openstack:compute/serverGroup:ServerGroup",
}

// policy is what holds for every bed in a cloud, whatever it was asked for.
func (f *fakeClouds) policy(t require.TestingT, nodes int) {
	owner := provision.Owner{ID: "life1", State: stacks.MarkedState("aws", "file:///state#cloud")}
	for _, m := range f.graph {
		at := m.kind + " " + m.name
		cloud := strings.HasPrefix(m.kind, "aws:") || strings.HasPrefix(m.kind, "openstack:")
		if cloud {
			assert.Contains(t, m.provider, "pulumi:providers:", "%s has a provider of ours, in the place that was asked for", at)
			assert.True(t, strings.HasSuffix(m.parent, "-machines"), "%s is a part of the machines: %s", at, m.parent)
		}
		if cloud && !slices.Contains(untagged, m.kind) {
			tags := tagsOf(m.inputs)
			found, expires, ok := clouds.OwnerOf(tags)
			if assert.True(t, ok, "%s bears no mark", at) {
				assert.Equal(t, []string{owner.ID, owner.State}, []string{found.ID, found.State}, at)
				assert.True(t, expires.After(f.since), "%s never expires", at)
			}
		}
		if strings.HasPrefix(m.kind, "openstack:networking/") {
			assert.NotContains(t, m.inputs, resource.PropertyKey("tags"), "%s would be there before its mark", at)
		}
		assert.NotContains(t, shownInputs(m), "the host key of", "%s shows a private key", at)
		for _, inline := range []resource.PropertyKey{"ingress", "egress"} {
			assert.NotContains(t, m.inputs, inline, "%s has rules of its own, which are looked at nowhere", at)
		}
		var sources []resource.PropertyKey
		for _, key := range []resource.PropertyKey{"cidrIpv4", "cidrIpv6", "prefixListId", "referencedSecurityGroupId", "remoteIpPrefix", "remoteGroupId", "remoteAddressGroupId"} {
			if _, ok := m.inputs[key]; ok {
				sources = append(sources, key)
			}
		}
		in := m.kind == "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule" || m.inputs["direction"].IsString() && m.inputs["direction"].StringValue() == "ingress"
		if in {
			assert.Len(t, sources, 1, "%s says from where, for Neutron takes none for the world", at)
			assert.NotContains(t, sources, resource.PropertyKey("prefixListId"), at)
		}
		for _, key := range sources {
			if v := m.inputs[key]; in && !strings.HasSuffix(strings.ToLower(string(key)), "groupid") {
				from, err := netip.ParsePrefix(v.StringValue())
				require.NoError(t, err, at)
				assert.GreaterOrEqual(t, from.Bits(), 8, "%s lets the world in", at)
				port := m.inputs["toPort"]
				if !port.IsNumber() {
					port = m.inputs["portRangeMax"]
				}
				assert.Equal(t, 22.0, port.NumberValue(), "%s opens more than ssh", at)
			}
		}
	}
	f.ordered(t)
	for _, m := range f.all("aws:ec2/launchTemplate:LaunchTemplate") {
		options := m.inputs["metadataOptions"].ObjectValue()
		assert.Equal(t, "required", options["httpTokens"].StringValue(), "IMDSv2 alone")
		for _, s := range m.inputs["tagSpecifications"].ArrayValue() {
			tags := map[string]string{}
			for key, v := range s.ObjectValue()["tags"].ObjectValue() {
				tags[string(key)] = v.StringValue()
			}
			found, _, _ := clouds.OwnerOf(tags)
			assert.Equal(t, []string{owner.ID, owner.State}, []string{found.ID, found.State}, "volumes and interfaces bear the mark")
		}
		require.NotEmpty(t, m.inputs["blockDeviceMappings"].ArrayValue(), "whose disk is in clear, if the image's is")
		for _, d := range m.inputs["blockDeviceMappings"].ArrayValue() {
			assert.Equal(t, "true", d.ObjectValue()["ebs"].ObjectValue()["encrypted"].StringValue(), "no disk is in clear")
		}
		placed := m.inputs["placement"].IsObject()
		assert.Equal(t, nodes > 1, placed, "more than one node are placed close to each other")
	}
	for _, m := range f.all("aws:ebs/snapshotImport:SnapshotImport") {
		assert.True(t, m.inputs["encrypted"].BoolValue())
	}
	assert.Len(t, slices.Concat(f.all("aws:ec2/instance:Instance"), f.all("openstack:compute/instance:Instance")), nodes)
	assert.Len(t, slices.Concat(f.all("aws:ec2/subnet:Subnet"), f.all("openstack:networking/subnet:Subnet")), 1, "one subnet, in one zone")
	inventory := f.made["bedfellow:index:Configuration"]["inventory"].ObjectValue()["nodes"].ArrayValue()
	require.Len(t, inventory, nodes)
	for _, n := range inventory {
		assert.NotEmpty(t, n.ObjectValue()["address"].StringValue())
		assert.NotEmpty(t, n.ObjectValue()["incarnation"].StringValue())
	}
}

// tagsOf are a resource's, which are words on OpenStack, a server's data there, and a description of what Neutron has.
func tagsOf(inputs resource.PropertyMap) map[string]string {
	tags := map[string]string{}
	if text := inputs["description"]; text.IsString() {
		maps.Copy(tags, clouds.Described(text.StringValue()))
	}
	for _, key := range []resource.PropertyKey{"tags", "metadata"} {
		v := inputs[key]
		switch {
		case v.IsObject():
			for name, value := range v.ObjectValue() {
				tags[string(name)] = value.StringValue()
			}
		case v.IsArray():
			for _, word := range v.ArrayValue() {
				name, value, _ := strings.Cut(word.StringValue(), "=")
				tags[name] = value
			}
		}
	}
	return tags
}

// shownInputs are a resource's inputs without what is secret.
func shownInputs(m made) string {
	data, err := json.Marshal(shown(resource.NewProperty(m.inputs)))
	if err != nil {
		return err.Error()
	}
	return string(data)
}

func shown(v resource.PropertyValue) any {
	switch {
	case v.IsSecret():
		return "secret"
	case v.IsObject():
		all := map[string]any{}
		for key, inner := range v.ObjectValue() {
			all[string(key)] = shown(inner)
		}
		return all
	case v.IsArray():
		all := []any{}
		for _, inner := range v.ArrayValue() {
			all = append(all, shown(inner))
		}
		return all
	case v.IsAsset():
		return "file " + v.AssetValue().Path
	}
	return v.V
}

var (
	somewhere = map[string]string{"aws.sshFrom": "198.51.100.0/24"}
	here      = map[string]map[string]string{"aws": somewhere, "openstack": {"openstack.sshFrom": "198.51.100.7"}} // presets
	stable    = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)                                                        // no bed of the golden files is past its time
)

// The presets' whole graphs, resource by resource.
func TestGraphs(t *testing.T) {
	for name, more := range map[string]map[string]string{
		"aws": somewhere, "openstack": {"openstack.sshFrom": "198.51.100.7"}, "aws-hpc7g": {"aws.sshFrom": "198.51.100.7", "aws.ami": "ami-05206ad3e1f591078"},
	} {
		t.Run(name, func(t *testing.T) {
			values := preset(t, name, more)
			f, err := cloudProgram(values, stable)
			require.NoError(t, err)
			f.policy(t, len(f.made["bedfellow:index:Keys"]["nodes"].ArrayValue()))
			var lines []string
			for _, m := range f.graph {
				if strings.HasPrefix(m.kind, "bedfellow:") && m.custom { // what every bed has, and other tests look at
					lines = append(lines, fmt.Sprintf("%s %s in %s\n", m.kind, m.name, m.parent))
					continue
				}
				lines = append(lines, fmt.Sprintf("%s %s in %s\n\t%s\n", m.kind, m.name, m.parent, shownInputs(m)))
			}
			slices.Sort(lines)
			host := strings.Trim(strings.TrimPrefix(stacks.MarkedState("aws", "file:///"), "file:"), "/")
			for i := range lines {
				lines[i] = strings.NewReplacer("=2F=2F"+host+"=2F", "=2F=2FHOST=2F", "//"+host+"/", "//HOST/").Replace(lines[i])
			}
			golden := filepath.Join("testdata", "graph-"+name+".txt")
			if *update {
				require.NoError(t, os.MkdirAll("testdata", 0o755))
				require.NoError(t, os.WriteFile(golden, []byte(strings.Join(lines, "")), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			assert.Equal(t, string(want), strings.Join(lines, ""), "`go test -tags clouds ./stacks -update` writes it anew")
		})
	}
}

// Whatever a valid configuration asks for, the policy holds.
func TestEveryBedInACloudKeepsThePolicy(t *testing.T) {
	prices, err := clouds.ReadPrices("")
	require.NoError(t, err)
	types := func(cloud string) (names []string) {
		for name, kind := range prices.Clouds[cloud].Types {
			if kind.Architecture == clouds.Architecture {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		return names
	}
	rapid.Check(t, func(t *rapid.T) {
		nodes := rapid.IntRange(1, 12).Draw(t, "nodes")
		values := map[string]string{
			"name": rapid.StringMatching(`[a-z][a-z0-9]{0,10}`).Draw(t, "name"), "nodes": fmt.Sprint(nodes), "ttl": fmt.Sprintf("%dm", rapid.IntRange(1, 100000).Draw(t, "ttl")),
			"network": rapid.SampledFrom([]string{"isolated", "outbound"}).Draw(t, "network"),
		}
		from := netip.PrefixFrom(netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "from"))), rapid.IntRange(8, 32).Draw(t, "bits")).Masked()
		if rapid.Bool().Draw(t, "disk?") {
			values["disk"] = fmt.Sprintf("%dGiB", rapid.IntRange(8, 2000).Draw(t, "disk"))
		}
		unlike := rapid.Bool().Draw(t, "unlike pools?")
		switch driver := rapid.SampledFrom(clouds.Names()).Draw(t, "driver"); driver {
		case "aws":
			kind := rapid.SampledFrom(types(driver)).Draw(t, "type")
			values["driver"], values["aws.region"], values["aws.instanceType"], values["aws.sshFrom"] = driver, "eu-central-1", kind, from.String()
			values["aws.spot"] = fmt.Sprint(rapid.Bool().Draw(t, "spot"))
			if prices.Clouds[driver].Types[kind].EFA {
				values["aws.efa"] = fmt.Sprint(rapid.Bool().Draw(t, "efa"))
			}
			if rapid.Bool().Draw(t, "threads?") {
				values["aws.threadsPerCore"] = "1"
			}
			if rapid.Bool().Draw(t, "ami?") {
				values["aws.ami"] = "ami-0123456789abcdef0"
			}
			values["aws.keepImage"] = fmt.Sprint(rapid.Bool().Draw(t, "keep"))
		case "openstack":
			values["driver"], values["openstack.externalNetwork"], values["openstack.sshFrom"] = driver, "public", from.String()
			values["openstack.flavor"] = rapid.SampledFrom(types(driver)).Draw(t, "flavor")
			if rapid.Bool().Draw(t, "image?") {
				values["openstack.image"] = "somebody's"
			}
		}
		if unlike {
			pools := []map[string]any{{"name": "first", "nodes": nodes}}
			for i := range rapid.IntRange(1, 3).Draw(t, "more pools") {
				more := rapid.IntRange(1, 4).Draw(t, "nodes of it")
				pools = append(pools, map[string]any{"name": fmt.Sprint("more", i), "nodes": more, "type": rapid.SampledFrom(types(values["driver"])).Draw(t, "type of it"), "disk": fmt.Sprint(8+i, "GiB")})
				nodes += more
			}
			text, err := json.Marshal(pools)
			require.NoError(t, err)
			values["pools"] = string(text)
			delete(values, "nodes")
			delete(values, "disk")
			delete(values, "aws.efa") // not all types have one
		}
		f, err := cloudProgram(values, time.Now())
		require.NoError(t, err, "%v", values)
		f.policy(t, nodes)
	})
}

// A bed that is to live longer is marked anew, and none of it is made anew.
func TestALongerLifeMakesNothingAnew(t *testing.T) {
	for name, more := range here {
		var graphs [2]map[string]string
		for i, ttl := range []string{"8h", "20h"} {
			values := preset(t, name, more)
			values["ttl"] = ttl
			f, err := cloudProgram(values, stable)
			require.NoError(t, err)
			graphs[i] = map[string]string{}
			for _, m := range f.graph {
				m.inputs = m.inputs.Copy()
				delete(m.inputs, "tags") // these are changed in place
				delete(m.inputs, "metadata")
				delete(m.inputs, "description")
				graphs[i][m.kind+" "+m.name] = shownInputs(m)
			}
		}
		assert.Equal(t, graphs[0], graphs[1])
	}
}

// A bed of unlike pools has each node as its pool's, and adapters where it computes.
func TestUnlikePools(t *testing.T) {
	pools := `[{"name":"serves","nodes":1,"type":"c7i.large"},{"name":"big","nodes":2,"type":"c7i.48xlarge","disk":"100GiB"},{"name":"more","nodes":1}]`
	values := preset(t, "aws", map[string]string{"aws.sshFrom": "198.51.100.7", "pools": pools, "aws.instanceType": "c7i.48xlarge", "aws.efa": "true"})
	delete(values, "nodes")
	f, err := cloudProgram(values, stable)
	require.NoError(t, err)
	f.policy(t, 4)
	kinds := map[string]string{} // of templates, by their ids
	for _, m := range f.all("aws:ec2/launchTemplate:LaunchTemplate") {
		disk := m.inputs["blockDeviceMappings"].ArrayValue()[0].ObjectValue()["ebs"].ObjectValue()["volumeSize"].NumberValue()
		kinds[m.name+"-id"] = fmt.Sprint(m.inputs["instanceType"].StringValue(), " ", disk, " ", m.inputs["networkInterfaces"].ArrayValue()[0].ObjectValue()["interfaceType"].StringValue())
		assert.Equal(t, m.name == "aws-template-c7i.large-40GiB", slices.Contains(m.aliases, "aws-template"), "the first bears the name of a bed's only one: %s", m.name)
	}
	assert.Len(t, kinds, 3)
	have := map[string]string{}
	for _, m := range f.all("aws:ec2/instance:Instance") {
		have[m.name] = kinds[m.inputs["launchTemplate"].ObjectValue()["id"].StringValue()]
	}
	assert.Equal(t, map[string]string{"aws-01": "c7i.large 40 interface", "aws-02": "c7i.48xlarge 100 efa", "aws-03": "c7i.48xlarge 100 efa", "aws-04": "c7i.48xlarge 40 efa"}, have)
	var cpus []float64
	for _, n := range f.made["bedfellow:index:Configuration"]["inventory"].ObjectValue()["nodes"].ArrayValue() {
		cpus = append(cpus, n.ObjectValue()["cpus"].NumberValue())
	}
	assert.Equal(t, []float64{2, 192, 192, 192}, cpus)

	values = preset(t, "openstack", map[string]string{"openstack.sshFrom": "198.51.100.7", "pools": `[{"name":"serves","nodes":1,"type":"m3.small"},{"name":"big","nodes":1}]`})
	delete(values, "nodes")
	f, err = cloudProgram(values, stable)
	require.NoError(t, err)
	f.policy(t, 2)
	have = map[string]string{}
	for _, m := range f.all("openstack:compute/instance:Instance") {
		have[m.name] = m.inputs["flavorName"].StringValue()
	}
	assert.Equal(t, map[string]string{"openstack-01": "m3.small", "openstack-02": "m3.quad"}, have)
}

// A bed of an image that is there bakes none, and says what it is of.
func TestAnImageThatIsThereIsNotBaked(t *testing.T) {
	f, err := cloudProgram(preset(t, "aws", map[string]string{"aws.sshFrom": "198.51.100.7", "aws.ami": "ami-05206ad3e1f591078"}), stable)
	require.NoError(t, err)
	assert.Empty(t, f.all("bedfellow:index:Image"))
	assert.Equal(t, "ami-05206ad3e1f591078", f.made["bedfellow:index:Configuration"]["inventory"].ObjectValue()["imageDigest"].StringValue())
}

// A bed whose time is over is not made, nor anything for it.
func TestABedPastItsTimeIsNotMade(t *testing.T) {
	for name, more := range here {
		f, err := cloudProgram(preset(t, name, more), time.Now().Add(-9*time.Hour))
		require.ErrorContains(t, err, "its time to live, 8h0m0s, was over at")
		assert.ErrorContains(t, err, "bed destroy")
		for _, m := range f.graph {
			assert.NotEqual(t, name, strings.Split(m.kind, ":")[0], "%s %s", m.kind, m.name)
		}
	}
}
