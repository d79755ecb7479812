package clouds_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/clouds"
)

// parse is what package stacks does with a configuration.
func parse(values map[string]string) (bed.Spec, bed.Problems) {
	spec, problems := bed.Parse("aws", values, bed.Known{Drivers: append(clouds.Names(), "nspawn"), Images: []string{"debian-12"}, WorkloadManagers: []string{"slurm"}, Kubernetes: []string{"none"}})
	problems = append(problems, clouds.Check(spec)...)
	return spec, append(problems, clouds.Shape(&spec, values)...)
}

func awsWith(more map[string]string) map[string]string {
	values := map[string]string{"driver": "aws", "ttl": "8h", "aws.region": "us-east-1", "aws.instanceType": "c7i.2xlarge"}
	for key, value := range more {
		values[key] = value
	}
	return values
}

func openStackWith(more map[string]string) map[string]string {
	values := map[string]string{"driver": "openstack", "ttl": "8h", "openstack.flavor": "m3.quad", "openstack.externalNetwork": "public"}
	for key, value := range more {
		values[key] = value
	}
	return values
}

func TestWhatIsWrongWithACloudsKeys(t *testing.T) {
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_DEFAULT_REGION", "")
	_, problems := parse(awsWith(nil))
	require.Empty(t, problems)
	_, problems = parse(openStackWith(nil))
	require.Empty(t, problems)
	for _, c := range []struct {
		values map[string]string
		key    string
		says   string
	}{
		{awsWith(map[string]string{"aws.region": ""}), "aws.region", "-c aws.region=us-east-1"},
		{awsWith(map[string]string{"aws.region": "Frankfurt"}), "aws.region", "such as us-east-1"},
		{awsWith(map[string]string{"aws.zone": "eu-west-1a"}), "aws.zone", "such as us-east-1a"},
		{awsWith(map[string]string{"aws.instanceType": "big", "cpus": "2", "memory": "4GiB"}), "aws.instanceType", "such as c7i.2xlarge"},
		{awsWith(map[string]string{"aws.efa": "true"}), "aws.instanceType", "Elastic Fabric Adapter"},
		{awsWith(map[string]string{"aws.efa": "yes"}), "aws.efa", "true or false"},
		{awsWith(map[string]string{"aws.sshFrom": "0.0.0.0/0"}), "aws.sshFrom", "not for the world"},
		{awsWith(map[string]string{"aws.sshFrom": "::/0"}), "aws.sshFrom", "IPv4"},
		{awsWith(map[string]string{"aws.sshFrom": "here"}), "aws.sshFrom", "192.0.2.0/24"},
		{awsWith(map[string]string{"aws.ami": "ubuntu"}), "aws.ami", "ami-0123456789abcdef0"},
		{awsWith(map[string]string{"aws.amiOwner": "canonical"}), "aws.amiOwner", "12 digits"},
		{awsWith(map[string]string{"aws.threadsPerCore": "4"}), "aws.threadsPerCore", "must be 1 or 2"},
		{awsWith(map[string]string{"ttl": ""}), "ttl", "-c ttl=8h"},
		{awsWith(map[string]string{"cpus": "4"}), "cpus", "which is 8"},
		{awsWith(map[string]string{"memory": "8GiB"}), "memory", "which is 16GiB"},
		{awsWith(map[string]string{"aws.instanceType": "m7i.large", "memory": "8GiB"}), "cpus", "has no type m7i.large"},
		{openStackWith(map[string]string{"openstack.flavor": ""}), "openstack.flavor", "openstack flavor list"},
		{openStackWith(map[string]string{"openstack.externalNetwork": ""}), "openstack.externalNetwork", "openstack network list --external"},
		{openStackWith(map[string]string{"openstack.nameservers": "192.0.2.53, dns"}), "openstack.nameservers", "dns"},
		{openStackWith(map[string]string{"aws.region": "us-east-1"}), "aws.region", "about driver aws"},
		{awsWith(map[string]string{"pools": `[{"name":"a","nodes":1},{"name":"b","nodes":1,"type":"big","cpus":2,"memory":"4GiB"}]`}), "pools[1].type", "such as c7i.2xlarge"},
		{awsWith(map[string]string{"aws.instanceType": "", "pools": `[{"name":"a","nodes":1,"type":"c7i.large"},{"name":"b","nodes":1},{"name":"c","nodes":1}]`}), "aws.instanceType", "such as c7i.2xlarge"},
		{awsWith(map[string]string{"pools": `[{"name":"a","nodes":1},{"name":"b","nodes":1,"type":"c7i.large","cpus":8}]`}), "pools[1].cpus", "which is 2"},
		{awsWith(map[string]string{"pools": `[{"name":"a","nodes":1},{"name":"b","nodes":1,"type":"m7i.large","cpus":2}]`}), "pools[1].memory", "has no type m7i.large"},
		{awsWith(map[string]string{"aws.efa": "true", "pools": `[{"name":"a","nodes":1},{"name":"b","nodes":1,"type":"c7i.large"}]`}), "pools[1].type", "Elastic Fabric Adapter"},
		{map[string]string{"driver": "nspawn", "pools": `[{"name":"a","nodes":1},{"name":"b","nodes":1,"type":"c7i.large"}]`}, "pools[1].type", "the bed's driver is nspawn"},
	} {
		_, problems := parse(c.values)
		require.Len(t, problems, 1, "%v: %v", c.values, problems)
		assert.Equal(t, c.key, problems[0].Key)
		assert.ErrorContains(t, problems, c.says)
		assert.Equal(t, 2, problems.ExitCode(), "whatever the host")
	}
}

// The authors' 33 instances cost 56 dollars an hour (facts 1.3).
func TestEstimateOfTheAuthorsBed(t *testing.T) {
	prices, err := clouds.ReadPrices("")
	require.NoError(t, err)
	spec, problems := parse(awsWith(map[string]string{"nodes": "33", "aws.instanceType": "hpc7g.4xlarge", "aws.ami": "ami-05206ad3e1f591078", "ttl": "10h", "disk": "100GiB"}))
	require.Empty(t, problems)
	e := clouds.EstimateOf(spec, prices)
	assert.Equal(t, 33, e.Instances)
	assert.Equal(t, 33*16, e.VCPUs)
	assert.Equal(t, 33*128.0, e.MemoryGiB)
	assert.Equal(t, 3300.0, e.DiskGiB)
	assert.InDelta(t, 56, e.PerHour, 0.6)
	assert.InDelta(t, 10*e.PerHour, e.Total, 1e-9)
	assert.Regexp(t, regexp.MustCompile(`^33 × hpc7g\.4xlarge on aws: in all 528 CPUs, 4224 GiB of memory, 3300 GiB of disk, public addresses: 33; meant to live 10 h\nabout 56\.\d\d USD an hour, 56\d\.\d\d USD until it expires \(prices of \d{4}-\d\d in us-east-1, traffic not included\)$`), e.String())
}

// A flavor's disk is in no list: what nobody asked for is not counted.
func TestEstimateOfFlavors(t *testing.T) {
	prices, err := clouds.ReadPrices("")
	require.NoError(t, err)
	for disk, says := range map[bed.Size]string{0: "GiB of memory, the flavors' own disks, public", 20 * bed.GiB: "GiB of memory, 40 GiB of disk, public"} {
		spec := bed.Spec{Driver: "openstack", Pools: []bed.Pool{{Nodes: 2, CPUs: 4, Memory: 8 * bed.GiB, Disk: disk}}, Settings: map[string]string{"flavor": "m3.quad"}}
		assert.Contains(t, clouds.EstimateOf(spec, prices).String(), says)
	}
}

func TestEstimateSaysWhereThereIsNoPrice(t *testing.T) {
	prices, err := clouds.ReadPrices("")
	require.NoError(t, err)
	spec, problems := parse(awsWith(map[string]string{"aws.instanceType": "m7i.large", "cpus": "2", "memory": "8GiB", "aws.spot": "true"}))
	require.Empty(t, problems)
	e := clouds.EstimateOf(spec, prices)
	assert.False(t, e.HasPrice)
	assert.Contains(t, e.String(), "--prices FILE")

	own := filepath.Join(t.TempDir(), "own.json")
	require.NoError(t, os.WriteFile(own, []byte(`{"date":"2026-11","clouds":{"aws":{"source":"ours","currency":"EUR","diskGiBMonth":0,"addressHour":0,"types":{
		"m7i.large":{"vcpus":2,"threadsPerCore":2,"memoryGiB":8,"architecture":"x86_64","efa":false,"perHour":0.5}}}}}`), 0o600))
	prices, err = clouds.ReadPrices(own)
	require.NoError(t, err)
	assert.Contains(t, clouds.EstimateOf(spec, prices).String(), "about 1.50 EUR an hour, 12.00 EUR until it expires, on demand: spot costs less")

	for text, says := range map[string]string{
		"{": "unexpected EOF", `{"date":"2026-11","clouds":{"gcp":{}}}`: `"gcp" is none of`, `{"clouds":{}}`: "no date", `{"date":"x","cloud":{}}`: "unknown field",
		`{"date":"x","clouds":{"aws":{"currency":"EUR","types":{"t":{"vcpus":0,"memoryGiB":1}}}}}`: "type t of aws",
	} {
		require.NoError(t, os.WriteFile(own, []byte(text), 0o600))
		_, err := clouds.ReadPrices(own)
		assert.ErrorContains(t, err, says)
		assert.ErrorContains(t, err, own)
	}
	_, err = clouds.ReadPrices(own + "-missing")
	assert.ErrorContains(t, err, "cannot be read")
}

// What unlike machines cost is the sum of what each does, and no price where one has none.
func TestEstimateOfUnlikePools(t *testing.T) {
	prices, err := clouds.ReadPrices("")
	require.NoError(t, err)
	of := func(pools string) clouds.Estimate {
		spec, problems := parse(awsWith(map[string]string{"aws.instanceType": "c7i.48xlarge", "aws.efa": "true", "pools": pools}))
		require.Empty(t, problems, "the control node's type needs no adapter")
		return clouds.EstimateOf(spec, prices)
	}
	e := of(`[{"name":"serves","nodes":1,"type":"c7i.large","disk":"10GiB"},{"name":"a","nodes":2},{"name":"b","nodes":1,"disk":"100GiB"}]`)
	assert.Equal(t, []clouds.Count{{"c7i.large", 1}, {"c7i.48xlarge", 3}}, e.Types)
	assert.Equal(t, []any{4, 2 + 3*192, 4 + 3*384.0, 10 + 2*40 + 100.0}, []any{e.Instances, e.VCPUs, e.MemoryGiB, e.DiskGiB})
	assert.InDelta(t, 0.08925+3*8.568+190*0.08/730+4*0.005, e.PerHour, 1e-9)
	assert.Contains(t, e.String(), "1 × c7i.large, 3 × c7i.48xlarge on aws: in all 578 CPUs")
	e = of(`[{"name":"serves","nodes":1,"type":"m7i.large","cpus":2,"memory":"8GiB"},{"name":"a","nodes":2}]`)
	assert.False(t, e.HasPrice)
	assert.Zero(t, e.PerHour)
	assert.Contains(t, e.String(), "not all of m7i.large, c7i.48xlarge; --prices FILE")
}

// Types of another architecture need an image that somebody else has made.
func TestDisksAreBakedForOneArchitecture(t *testing.T) {
	spec, problems := parse(awsWith(map[string]string{"aws.instanceType": "hpc7g.4xlarge"}))
	require.Empty(t, problems, "it is a valid configuration")
	found := clouds.CheckHost(spec)
	require.Len(t, found, 1)
	assert.Contains(t, found[0].Remedy, "-c aws.ami=")
	assert.Equal(t, 3, found.ExitCode())
	spec.Settings["ami"] = "ami-0123456789abcdef0"
	assert.Empty(t, clouds.CheckHost(spec))
	spec, _ = parse(awsWith(nil))
	assert.Empty(t, clouds.CheckHost(spec))
}

// A machine has what its type has, and half of that where one thread of a core is used.
func TestShape(t *testing.T) {
	spec, problems := parse(awsWith(nil))
	require.Empty(t, problems)
	assert.Equal(t, []any{8, 16 * bed.GiB}, []any{spec.Pools[0].CPUs, spec.Pools[0].Memory})
	spec, problems = parse(awsWith(map[string]string{"aws.threadsPerCore": "1"}))
	require.Empty(t, problems)
	assert.Equal(t, 4, spec.Pools[0].CPUs)
	_, problems = parse(awsWith(map[string]string{"aws.instanceType": "hpc7a.12xlarge", "aws.threadsPerCore": "2", "aws.ami": "ami-0123456789abcdef0"}))
	assert.ErrorContains(t, problems, "more than a core")
}

// What is written into tags is read again, and is what every service takes.
func TestMarksAreReadAgain(t *testing.T) {
	allowed := regexp.MustCompile(`^[A-Za-z0-9_.:/=+@ -]*$`)
	rapid.Check(t, func(t *rapid.T) {
		owner := provision.Owner{Bed: rapid.StringMatching(`[a-z][a-z0-9-]{0,10}`).Draw(t, "bed"), ID: rapid.StringMatching(`[0-9a-f]{16}`).Draw(t, "id"), State: rapid.String().Draw(t, "state")}
		expires := time.Unix(rapid.Int64Range(1, 4e9).Draw(t, "expires"), 0)
		tags := clouds.Tags(owner, expires)
		for key, value := range tags {
			assert.Regexp(t, allowed, key+value)
		}
		found, at, ok := clouds.OwnerOf(tags)
		assert.True(t, ok)
		assert.Equal(t, owner, found)
		assert.True(t, expires.Equal(at))
		assert.Equal(t, tags, clouds.Described(clouds.Description(tags)))
		forever := clouds.Tags(owner, time.Time{})
		assert.Equal(t, forever, clouds.Described(clouds.Description(forever)))
	})
	for _, text := range []string{"", "somebody's", "bedfellow nodes", "Nodes of a bed of somebody's"} {
		assert.Empty(t, clouds.Described(text))
	}
	_, _, ok := clouds.OwnerOf(map[string]string{"Name": "somebody's"})
	assert.False(t, ok)
}
