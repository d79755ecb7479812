//go:build clouds

package clouds

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
)

var (
	ours    = provision.Owner{Bed: "u2204", ID: "aaaa", State: "file:///home/someone/my state#u2204"}
	foreign = provision.Owner{Bed: "u2204", ID: "bbbb", State: "s3://theirs#u2204"}
	expires = time.Date(2026, 11, 27, 20, 0, 0, 0, time.UTC)
)

// hurried has nobody wait long.
func hurried(t *testing.T, timeout time.Duration) {
	server, sweep, poll, pause := openStackServerTimeout, openStackSweepTimeout, openStackPoll, openStackPause
	t.Cleanup(func() {
		openStackServerTimeout, openStackSweepTimeout, openStackPoll, openStackPause = server, sweep, poll, pause
	})
	openStackServerTimeout, openStackSweepTimeout, openStackPoll, openStackPause = timeout, timeout, time.Millisecond, time.Millisecond
}

func opened(t *testing.T) Cloud {
	c, err := Open("openstack", map[string]string{"flavor": "m3.quad", "externalNetwork": "public"})
	require.NoError(t, err)
	return c
}

// of has those of the ids that begin so.
func of(ids []string, prefix string) (found []string) {
	for _, id := range ids {
		if strings.HasPrefix(id, prefix) {
			found = append(found, id)
		}
	}
	return found
}

func TestOpenStackSweepRemovesABed(t *testing.T) {
	hurried(t, time.Minute)
	f := newFakeOpenStack(t)
	f.bed(Tags(foreign, expires), "their", 2, false)
	theirs := f.ids()
	f.bed(Tags(ours, expires), "our", 2, false)
	f.polls = 4
	require.NoError(t, opened(t).(*openStackCloud).Sweep(t.Context(), ours))
	assert.Equal(t, theirs, f.ids())
	assert.Equal(t, []string{"DELETE /compute/v2.1/servers/our-server0", "DELETE /compute/v2.1/servers/our-server1"}, f.asked[:2], "all servers go at once")
	require.NoError(t, opened(t).(*openStackCloud).Sweep(t.Context(), ours), "a clean bed is no error")
	assert.Equal(t, theirs, f.ids())
}

func TestOpenStackSweepLeavesWhatIsKept(t *testing.T) {
	hurried(t, time.Minute)
	f := newFakeOpenStack(t)
	f.bed(Tags(ours, expires), "our", 1, true)
	f.add("volumes", object{"id": "somebody's", "volume_image_metadata": object{}})
	c := opened(t).(*openStackCloud)
	kept, err := c.KeptImages(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []provision.KeptImage{{ID: "our-image", Name: "bedfellow-our", Digest: "sha256-our", Used: 1}}, kept)
	require.ErrorContains(t, c.RemoveImage(t.Context(), "our-image"), "remove image our-image: 409 Conflict: Image our-image could not be deleted because it is in use")

	require.NoError(t, c.Sweep(t.Context(), ours))
	assert.Equal(t, []string{"our-image", "somebody's"}, f.ids())
	owners, err := c.Owners(t.Context())
	require.NoError(t, err)
	assert.Empty(t, owners, "what is kept makes no bed")
	kept, err = c.KeptImages(t.Context())
	require.NoError(t, err)
	assert.Zero(t, kept[0].Used)
	require.NoError(t, c.RemoveImage(t.Context(), "our-image"))
	require.NoError(t, c.RemoveImage(t.Context(), "our-image"), "what is gone is no error")
	assert.Equal(t, []string{"somebody's"}, f.ids())
}

// A key pair's name has no state: that it is ours the ids tell, of this life of the bed and of those that left something.
func TestOpenStackSweepKnowsKeyPairsByTheirIDs(t *testing.T) {
	hurried(t, time.Minute)
	f := newFakeOpenStack(t)
	before := provision.Owner{Bed: ours.Bed, ID: "cccc", State: ours.State}
	f.add("security-groups", object{"id": "left", "description": Description(Tags(before, time.Time{}))})
	for _, id := range []string{ours.ID, before.ID, foreign.ID, "dddd"} {
		f.add("os-keypairs", object{"id": Label(ours.Bed, id)})
		f.add("os-server-groups", object{"id": "spread-" + id, "name": Label(ours.Bed, id)})
	}
	require.NoError(t, opened(t).(*openStackCloud).Sweep(t.Context(), ours))
	assert.Equal(t, []string{"bedfellow-u2204-bbbb", "bedfellow-u2204-dddd", "spread-bbbb", "spread-dddd"}, f.ids())
}

func TestOpenStackSweepOfAHalfMadeBed(t *testing.T) {
	hurried(t, time.Minute)
	f := newFakeOpenStack(t)
	mark := Description(Tags(ours, expires))
	f.add("networks", object{"id": "network", "name": "n", "description": mark, "tags": []string{}}) // made, and any tags would be to come, as below
	f.add("ports", object{"id": "port", "network_id": "network", "device_owner": "", "device_id": "", "security_groups": []string{"group"}, "description": mark, "tags": []string{}})
	f.add("security-groups", object{"id": "group", "description": mark, "tags": []string{}})
	f.add("routers", object{"id": "router", "description": mark, "tags": []string{}})
	f.add("floatingips", object{"id": "floating", "description": mark, "tags": []string{}})
	f.add("images", object{"id": "image", "name": "i", "status": "queued", "visibility": "private", "tags": Words(Tags(ours, expires))})
	f.add("volumes", // Nova's, whose server is not there; and somebody's
		object{"id": "volume", "volume_image_metadata": object{"image_id": "image"}},
		object{"id": "somebody's", "volume_image_metadata": object{"image_id": "another"}},
		object{"id": "empty", "volume_image_metadata": object{}})
	f.add("servers", object{"id": "server", "status": "ERROR", "metadata": Tags(ours, expires), "fault": object{"message": "No valid host was found."}})
	require.NoError(t, opened(t).(*openStackCloud).Sweep(t.Context(), ours))
	assert.Equal(t, []string{"empty", "somebody's"}, f.ids())
}

// A volume that somebody has given a name or a server is theirs, be it of the bed's image: the sweep says what keeps that.
func TestOpenStackSweepLeavesNamedVolumes(t *testing.T) {
	hurried(t, 50*time.Millisecond)
	f := newFakeOpenStack(t)
	f.add("images", object{"id": "image", "name": "i", "status": "active", "visibility": "private", "tags": Words(Tags(ours, expires))})
	f.add("volumes",
		object{"id": "named", "name": "results", "volume_image_metadata": object{"image_id": "image"}},
		object{"id": "attached", "attachments": []object{{"server_id": "elsewhere"}}, "volume_image_metadata": object{"image_id": "image"}})
	require.ErrorContains(t, opened(t).(*openStackCloud).Sweep(t.Context(), ours), "remove image image: it took more than 50ms")
	assert.Equal(t, []string{"attached", "image", "named"}, f.ids())
}

// What is kept has no say in when the bed that stands is over.
func TestOpenStackExpires(t *testing.T) {
	f := newFakeOpenStack(t)
	f.bed(Tags(ours, expires), "our", 1, false)
	f.add("images", object{"id": "kept", "name": "i", "status": "active", "visibility": "private", "tags": append(Words(Tags(ours, expires.Add(72*time.Hour))), TagKeep+"=true")})
	at, err := opened(t).(*openStackCloud).Expires(t.Context(), ours)
	require.NoError(t, err)
	assert.True(t, expires.Equal(at), at)
}

func TestOpenStackSweepWaitsForWhatHoldsThings(t *testing.T) {
	hurried(t, time.Minute)
	f := newFakeOpenStack(t)
	f.bed(Tags(ours, expires), "our", 1, false)
	f.add("volumes", object{"id": "our-volume", "volume_image_metadata": object{"image_id": "our-image"}})
	f.held = map[string]int{"our-volume": 2, "our-server0": 2, "our-floating": 3, "our-router": 4, "our-network": 2, "our-group": 5, "our-image": 1}
	require.NoError(t, opened(t).(*openStackCloud).Sweep(t.Context(), ours))
	assert.Empty(t, f.ids())
}

// A service that is busy or away for a moment is asked once more; one that stays so is told of.
func TestOpenStackIsAskedAgain(t *testing.T) {
	hurried(t, time.Minute)
	f := newFakeOpenStack(t)
	f.bed(Tags(ours, expires), "our", 1, false)
	f.errors = []int{503, 429, 500, 502}
	require.NoError(t, opened(t).(*openStackCloud).Sweep(t.Context(), ours))
	assert.Empty(t, f.ids())
	f.errors = []int{504, 504, 504, 504, 504}
	assert.ErrorContains(t, opened(t).(*openStackCloud).Sweep(t.Context(), ours), "list servers: 504 Gateway Timeout")
	f.errors = []int{403}
	assert.ErrorContains(t, opened(t).(*openStackCloud).Sweep(t.Context(), ours), "list servers: 403 Forbidden")
}

// Who runs a cloud is shown what all projects have of its networks and images, and sees the servers of one: a bed is not taken apart by halves.
func TestOpenStackSweepStaysInItsProject(t *testing.T) {
	hurried(t, time.Minute)
	f := newFakeOpenStack(t)
	f.bed(Tags(foreign, expires), "their", 1, false)
	for _, things := range f.there {
		for _, o := range things {
			if id, _ := o["id"].(string); strings.HasPrefix(id, "their") {
				o["project_id"], o["owner"] = "project-2", "project-2"
			}
		}
	}
	f.drop("servers", has("project_id", "project-2")) // Nova does not show them
	theirs := f.ids()
	c := opened(t).(*openStackCloud)
	owners, err := c.Owners(t.Context())
	require.NoError(t, err)
	assert.Empty(t, owners)
	require.NoError(t, c.Sweep(t.Context(), provision.Owner{Bed: foreign.Bed, State: foreign.State}))
	assert.Equal(t, theirs, f.ids())
}

func TestOpenStackEndsWhatNobodyHasNoted(t *testing.T) {
	hurried(t, time.Minute)
	f := newFakeOpenStack(t)
	f.bed(Tags(ours, expires), "our", 3, false)
	f.bed(Tags(foreign, expires), "their", 1, false)
	require.NoError(t, opened(t).EndOthers(t.Context(), provision.Owner{ID: ours.ID, State: ours.State}, []string{"our-server0", "our-server2"}))
	left := f.ids()
	assert.NotContains(t, left, "our-server1")
	for _, id := range []string{"our-server0", "our-server2", "their-server0", "our-network", "our-port1"} {
		assert.Contains(t, left, id)
	}
}

func TestOpenStackSweepSaysWhatDoesNotGo(t *testing.T) {
	hurried(t, 50*time.Millisecond)
	f := newFakeOpenStack(t)
	f.bed(Tags(ours, expires), "our", 1, false)
	f.held["our-group"] = -1
	c := opened(t).(*openStackCloud)
	assert.EqualError(t, c.Sweep(t.Context(), ours),
		"remove security group our-group: it took more than 50ms (last: 409 Conflict: our-group is busy); look at what uses it, and call this again")
	assert.NotContains(t, f.ids(), Label(ours.Bed, ours.ID), "of the key pair nobody would know afterwards whose it is")

	f.bed(Tags(ours, expires), "slow", 1, false)
	f.polls = 1 << 30
	assert.EqualError(t, c.Sweep(t.Context(), ours),
		"remove server slow-server0: it took more than 50ms (last: it is still there, and ACTIVE); look at what uses it, and call this again")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, c.Sweep(ctx, ours), context.Canceled)
}

// Somebody's own server on the bed's network keeps that, and is not touched.
func TestOpenStackSweepTouchesNoStranger(t *testing.T) {
	hurried(t, 50*time.Millisecond)
	f := newFakeOpenStack(t)
	f.add("networks", object{"id": "network", "name": "n", "description": Description(Tags(ours, expires))})
	f.add("servers", object{"id": "stranger", "status": "ACTIVE", "metadata": object{}})
	f.add("ports", object{"id": "port", "network_id": "network", "device_owner": "compute:nova", "device_id": "stranger", "security_groups": []string{}, "tags": []string{}})
	require.ErrorContains(t, opened(t).(*openStackCloud).Sweep(t.Context(), ours),
		"remove network network: it took more than 50ms (last: 409 Conflict: Unable to complete operation on network")
	assert.Equal(t, []string{"network", "port", "stranger"}, f.ids())
}

func TestOpenStackOwnersAndExpires(t *testing.T) {
	f := newFakeOpenStack(t)
	f.bed(Tags(ours, expires), "our", 2, true)
	f.bed(Tags(foreign, time.Time{}), "their", 1, false)
	c := opened(t).(*openStackCloud)
	owners, err := c.Owners(t.Context())
	require.NoError(t, err)
	assert.ElementsMatch(t, []provision.Owner{ours, foreign}, owners)
	at, err := c.Expires(t.Context(), ours)
	require.NoError(t, err)
	assert.Equal(t, expires, at)
	at, err = c.Expires(t.Context(), foreign)
	require.NoError(t, err)
	assert.Zero(t, at)
}

func TestOpenStackList(t *testing.T) {
	hurried(t, time.Minute)
	f := newFakeOpenStack(t)
	f.bed(Tags(ours, expires), "our", 3, false)
	other := provision.Owner{Bed: "other", ID: "eeee", State: ours.State}
	f.bed(Tags(other, time.Time{}), "other", 1, false)
	f.there["servers"][1]["status"] = "SHUTOFF"
	f.there["servers"][2]["status"], f.there["servers"][2]["fault"] = "ERROR", object{"message": "No valid host was found."}
	c := opened(t)
	list, err := c.List(t.Context(), ours.Bed)
	require.NoError(t, err)
	assert.Equal(t, []provision.Status{
		{Name: "u2204-01", Owner: ours, State: provision.Running, Address: "203.0.113.7", Port: 22, BedAddress: "10.106.0.10", Incarnation: "our-server0", Expires: expires},
		{Name: "u2204-02", Owner: ours, State: provision.Stopped, Detail: "shutoff", Port: 22, BedAddress: "10.106.0.11", Incarnation: "our-server1", Expires: expires},
		{Name: "u2204-03", Owner: ours, State: provision.Broken, Detail: "error: No valid host was found.", Port: 22, BedAddress: "10.106.0.12", Incarnation: "our-server2", Expires: expires},
	}, list)
	list, err = c.List(t.Context(), "")
	require.NoError(t, err)
	assert.Len(t, list, 4)
}

func TestOpenStackCheck(t *testing.T) {
	f := newFakeOpenStack(t)
	assert.Empty(t, opened(t).Check(t.Context()))

	problems := (&openStackCloud{s: OpenStack{Region: "Mars"}}).Check(t.Context())
	require.Len(t, problems, 1)
	assert.Equal(t, "openstack.region", problems[0].Key)
	assert.Contains(t, problems[0].Reason, "service compute")

	file := filepath.Join(t.TempDir(), "clouds.yaml")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `clouds:
  mine:
    region_name: %s
    auth: {auth_url: "%s/v3", username: someone, password: %s, project_name: ours, user_domain_name: Default, project_domain_name: Default}
`, fakeRegion, f.URL, fakePassword), 0o600))
	t.Setenv("OS_CLIENT_CONFIG_FILE", file)
	t.Setenv("OS_PASSWORD", "")
	t.Setenv("OS_CLOUD", "mine")
	assert.Empty(t, opened(t).Check(t.Context()))
	t.Setenv("OS_CLOUD", "")

	for what, set := range map[string]func(){
		"OpenStack does not let you in: log in to OpenStack's service compute: 401 Unauthorized: The request you have made": func() { t.Setenv("OS_PASSWORD", "wrong") },
		"cloud yours does not exist": func() { t.Setenv("OS_CLOUD", "yours") },
	} {
		set()
		problems = opened(t).Check(t.Context())
		require.Len(t, problems, 1)
		assert.Contains(t, problems[0].Reason, what)
		assert.Contains(t, problems[0].Remedy, "OS_CLOUD")
		assert.True(t, problems[0].Host)
		t.Setenv("OS_CLOUD", "")
	}
	t.Setenv("OS_AUTH_URL", "")
	assert.Contains(t, opened(t).Check(t.Context())[0].Reason, "auth_url")
}

// The library asks for versions without regard to who waits.
func TestOpenStackCheckDoesNotWaitForEver(t *testing.T) {
	f := newFakeOpenStack(t)
	f.silent = make(chan struct{})
	defer close(f.silent)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	problems := opened(t).Check(ctx)
	require.Len(t, problems, 1)
	assert.Contains(t, problems[0].Reason, "service network: context deadline exceeded")
}

func TestOpenStackFit(t *testing.T) {
	for name, c := range map[string]struct {
		s      OpenStack
		flavor string
		pools  []bed.Pool
		is     func(*fakeOpenStack)
		want   []string // the beginning of each problem
	}{
		"all is well": {},
		"no such flavor": {flavor: "m5.huge", want: []string{
			"openstack.flavor: \"m5.huge\": is none of the flavors that there are for you: m1.small, m3.quad, m3.tiny\n"}},
		"another size": {flavor: "m1.small", want: []string{
			"cpus: \"4\": is not what a m1.small has, which is 1\n    → write -c cpus=1", "memory: \"15GiB\": is not what a m1.small has, which is 2GiB\n    → write -c memory=2GiB"}},
		"a flavor without a disk": {flavor: "m3.tiny", pools: []bed.Pool{{Nodes: 2, CPUs: 1, Memory: bed.GiB}}, want: []string{
			"disk: is not set, and a m3.tiny has no disk of its own\n    → write -c disk=20GiB, which is then a volume, or choose another flavor"}},
		"a flavor without a disk, and a volume": {flavor: "m3.tiny", pools: []bed.Pool{{Nodes: 2, CPUs: 1, Memory: bed.GiB, Disk: 8 * bed.GiB}}},
		"unlike pools":                          {pools: []bed.Pool{{Nodes: 1, Type: "m1.small", CPUs: 1, Memory: 2 * bed.GiB}, {Nodes: 4, CPUs: 4, Memory: 15 * bed.GiB}}},
		"unlike pools, too many": {pools: []bed.Pool{{Nodes: 1, Type: "m1.small", CPUs: 1, Memory: 2 * bed.GiB}, {Nodes: 5, CPUs: 4, Memory: 15 * bed.GiB}}, want: []string{
			"nodes: \"6\": take 21 vCPUs, and your project has 20 left of 20\n"}},
		"unlike pools, one of another size": {pools: []bed.Pool{{Nodes: 1, CPUs: 4, Memory: 15 * bed.GiB}, {Nodes: 1, Type: "m1.small", CPUs: 2, Memory: 2 * bed.GiB}}, want: []string{
			"pools[1].cpus: \"2\": is not what a m1.small has, which is 1\n    → write 1 there"}},
		"unlike pools, one of no flavor": {pools: []bed.Pool{{Nodes: 1, CPUs: 4, Memory: 15 * bed.GiB}, {Nodes: 1, Type: "m5.huge", CPUs: 4, Memory: 15 * bed.GiB}}, want: []string{
			"pools[1].type: \"m5.huge\": is none of the flavors that there are for you: m1.small, m3.quad, m3.tiny\n"}},
		"no such network": {s: OpenStack{ExternalNetwork: "world"}, want: []string{
			"openstack.externalNetwork: \"world\": is none of the external networks that there are for you: public\n"}},
		"no such image": {s: OpenStack{Image: "ubuntu"}, want: []string{"openstack.image: \"ubuntu\": is the name of 0 images\n"}},
		"an image": {s: OpenStack{Image: "ubuntu"}, is: func(f *fakeOpenStack) {
			f.add("images", object{"id": "i", "name": "ubuntu", "status": "active"})
		}},
		"an image on its way": {s: OpenStack{Image: "ubuntu"}, want: []string{"openstack.image: \"ubuntu\": cannot be used yet: it is queued\n"}, is: func(f *fakeOpenStack) {
			f.add("images", object{"id": "i", "name": "ubuntu", "status": "queued"})
		}},
		"an image of another architecture": {s: OpenStack{Image: "ubuntu"}, want: []string{"openstack.image: \"ubuntu\": is for arm64, and a m3.quad is a machine of architecture x86_64\n"}, is: func(f *fakeOpenStack) {
			f.add("images", object{"id": "i", "name": "ubuntu", "status": "active", "architecture": "aarch64"})
		}},
		"an image of the flavor's architecture": {s: OpenStack{Image: "ubuntu"}, is: func(f *fakeOpenStack) {
			f.add("images", object{"id": "i", "name": "ubuntu", "status": "active", "architecture": "x86_64"})
		}},
		"little left": {
			is: func(f *fakeOpenStack) {
				f.limits = object{"maxTotalCores": 20, "totalCoresUsed": 13, "maxTotalInstances": 1, "totalInstancesUsed": 3, "maxTotalRAMSize": 20000, "totalRAMUsed": 0}
				f.quota = object{"limit": 1, "used": 1, "reserved": 0}
			},
			want: []string{
				"nodes: \"2\": take 2 servers, and your project has 0 left of 1\n", "nodes: \"2\": take 8 vCPUs, and your project has 7 left of 20\n",
				"nodes: \"2\": take 30720 MiB of memory, and your project has 20000 left of 20000\n", "nodes: \"2\": take 1 floating IPs, and your project has 0 left of 1\n",
			},
		},
		"little left of what is around servers": {pools: []bed.Pool{{Nodes: 2, CPUs: 4, Memory: 15 * bed.GiB, Disk: 8 * bed.GiB}},
			is: func(f *fakeOpenStack) {
				f.limits["maxServerGroups"], f.limits["totalServerGroupsUsed"], f.limits["maxServerGroupMembers"] = 10, 10, 1
				f.quotas = object{}
				for _, kind := range []string{"network", "subnet", "router", "security_group"} {
					f.quotas[kind] = object{"limit": 3, "used": 2, "reserved": 1}
				}
				f.quotas["port"] = object{"limit": 4, "used": 2, "reserved": 0}
				f.space = object{"maxTotalVolumes": 1, "totalVolumesUsed": 0, "maxTotalVolumeGigabytes": 20, "totalGigabytesUsed": 5}
			},
			want: []string{
				"nodes: \"2\": take 2 places in one server group, and your project has 1 left of 1\n", "nodes: \"2\": take 1 server groups, and your project has 0 left of 10\n",
				"nodes: \"2\": take 1 networks, and your project has 0 left of 3\n", "nodes: \"2\": take 1 subnets, ", "nodes: \"2\": take 1 routers, ",
				"nodes: \"2\": take 3 ports, and your project has 2 left of 4\n", "nodes: \"2\": take 1 security groups, ",
				"nodes: \"2\": take 2 volumes, and your project has 1 left of 1\n", "nodes: \"2\": take 16 GiB of volumes, and your project has 15 left of 20\n",
			},
		},
		"an image larger than the flavor's disk": {s: OpenStack{Image: "ubuntu"}, want: []string{
			"disk: \"20GiB\": is less than the 50GiB that image ubuntu takes\n    → write -c disk=50GiB, which is then a volume"}, is: func(f *fakeOpenStack) {
			f.add("images", object{"id": "i", "name": "ubuntu", "status": "active", "min_disk": 50})
		}},
		"an image larger than the disk": {s: OpenStack{Image: "ubuntu"}, pools: []bed.Pool{{Nodes: 2, CPUs: 4, Memory: 15 * bed.GiB, Disk: 8 * bed.GiB}}, want: []string{
			"disk: \"8GiB\": is less than the 10GiB that image ubuntu takes\n    → write -c disk=10GiB, which is then a volume"}, is: func(f *fakeOpenStack) {
			f.add("images", object{"id": "i", "name": "ubuntu", "status": "active", "virtual_size": 10 << 30})
		}},
		"a bed that is there needs no more": {is: func(f *fakeOpenStack) {
			f.bed(Tags(ours, expires), "our", 2, false)
			f.limits = object{"maxTotalCores": 8, "totalCoresUsed": 8, "maxTotalInstances": 2, "totalInstancesUsed": 2, "maxTotalRAMSize": 30720, "totalRAMUsed": 30720}
			f.quota = object{"limit": 1, "used": 1, "reserved": 0}
			f.limits["maxServerGroups"], f.limits["totalServerGroupsUsed"], f.limits["maxServerGroupMembers"] = 1, 1, 1
			for kind := range f.quotas {
				f.quotas[kind] = object{"limit": 1, "used": 1, "reserved": 0}
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeOpenStack(t)
			if c.is != nil {
				c.is(f)
			}
			s := OpenStack{ExternalNetwork: "public", Image: c.s.Image}
			spec := bed.Spec{Name: ours.Bed, Driver: "openstack", Settings: map[string]string{"flavor": cmp.Or(c.flavor, "m3.quad")}, Pools: c.pools}
			if len(spec.Pools) == 0 {
				spec.Pools = []bed.Pool{{Nodes: 2, CPUs: 4, Memory: 15 * bed.GiB}}
			}
			if c.s.ExternalNetwork != "" {
				s.ExternalNetwork = c.s.ExternalNetwork
			}
			problems := (&openStackCloud{s: s}).Fit(t.Context(), spec)
			require.Len(t, problems, len(c.want), "%v", problems)
			for i, want := range c.want {
				assert.True(t, strings.HasPrefix(problems[i].String(), want), problems[i].String())
			}
		})
	}
}
