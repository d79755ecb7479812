//go:build clouds

package stacks_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func ofCloud(m made) bool {
	return strings.HasPrefix(m.kind, "aws:") || strings.HasPrefix(m.kind, "openstack:")
}

// texts are all of a value, secret ones too.
func texts(v resource.PropertyValue) (all []string) {
	switch {
	case v.IsString():
		return []string{v.StringValue()}
	case v.IsSecret():
		return texts(v.SecretValue().Element)
	case v.IsArray():
		for _, inner := range v.ArrayValue() {
			all = append(all, texts(inner)...)
		}
	case v.IsObject():
		for _, inner := range v.ObjectValue() {
			all = append(all, texts(inner)...)
		}
	}
	return all
}

// ordered checks that whatever names another thing of the bed in the cloud depends on it, so that it is made after that and removed before.
func (f *fakeClouds) ordered(t require.TestingT) {
	found := 0
	for _, m := range f.graph {
		if !ofCloud(m) {
			continue
		}
		inputs := m.inputs.Copy()
		for _, mark := range []resource.PropertyKey{"tags", "metadata", "description"} {
			delete(inputs, mark)
		}
		said := texts(resource.NewProperty(inputs))
		byName := map[string][]string{} // a key pair and a server group have one in common
		for _, other := range f.graph {
			if !ofCloud(other) || other.kind == m.kind && other.name == m.name {
				continue
			}
			for _, known := range other.known {
				if !slices.Contains(m.known, known) && slices.ContainsFunc(said, func(text string) bool {
					return text == known || strings.HasPrefix(known, "arn:") && strings.Contains(text, known)
				}) {
					byName[known] = append(byName[known], other.kind+" "+other.name)
				}
			}
		}
		for known, others := range byName {
			found++
			assert.True(t, slices.ContainsFunc(others, func(other string) bool { return slices.Contains(m.needs, other) }),
				"%s %s names %s, of %v, and depends on %v alone", m.kind, m.name, known, others, m.needs)
		}
	}
	assert.Greater(t, found, 10, "they name each other")
}

// below are the kinds of all that it depends on, and of what those do.
func (f *fakeClouds) below(m made) map[string]bool {
	kinds := map[string]bool{}
	for _, other := range f.graph {
		if slices.Contains(m.needs, other.kind+" "+other.name) && !kinds[other.kind] {
			kinds[other.kind] = true
			maps.Copy(kinds, f.below(other))
		}
	}
	return kinds
}

// A destroy removes things in the reverse of what they depend on. That must be the order in which the clouds let each other go, whether one names
// the other or not.
func TestDestroyRemovesInTheOrderThatWorks(t *testing.T) {
	const ec2, neutron, nova = "aws:ec2/", "openstack:networking/", "openstack:compute/"
	goesBefore := map[string]map[string][]string{
		"aws": {
			// the gateway stays attached while anything behind it has a public address; a group, a subnet, a placement and an image while they are used
			ec2 + "instance:Instance": {
				ec2 + "internetGateway:InternetGateway", ec2 + "routeTable:RouteTable", ec2 + "routeTableAssociation:RouteTableAssociation", ec2 + "subnet:Subnet", ec2 + "vpc:Vpc",
				ec2 + "securityGroup:SecurityGroup", "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule", "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule",
				ec2 + "keyPair:KeyPair", ec2 + "placementGroup:PlacementGroup", ec2 + "launchTemplate:LaunchTemplate", ec2 + "ami:Ami", "aws:ebs/snapshotImport:SnapshotImport",
			},
			ec2 + "ami:Ami":                         {"aws:ebs/snapshotImport:SnapshotImport"},
			"aws:ebs/snapshotImport:SnapshotImport": {"aws:iam/role:Role", "aws:iam/rolePolicy:RolePolicy", "aws:s3/bucket:Bucket", "aws:s3/bucketObjectv2:BucketObjectv2"},
			"aws:s3/bucketObjectv2:BucketObjectv2":  {"aws:s3/bucket:Bucket", "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock"},
			"aws:iam/rolePolicy:RolePolicy":         {"aws:iam/role:Role"},
		},
		"openstack": {
			// Neutron keeps a router's interface while a floating address leads through it, and everything that a port is on
			neutron + "floatingIpAssociate:FloatingIpAssociate": {
				neutron + "floatingIp:FloatingIp", neutron + "port:Port", neutron + "routerInterface:RouterInterface", neutron + "router:Router", neutron + "subnet:Subnet", neutron + "network:Network",
			},
			nova + "instance:Instance": {
				neutron + "port:Port", neutron + "subnet:Subnet", neutron + "network:Network", neutron + "secGroup:SecGroup", nova + "keypair:Keypair", nova + "serverGroup:ServerGroup",
				"openstack:images/image:Image",
			},
			neutron + "port:Port":                       {neutron + "subnet:Subnet", neutron + "network:Network", neutron + "secGroup:SecGroup"},
			neutron + "routerInterface:RouterInterface": {neutron + "router:Router", neutron + "subnet:Subnet"},
			neutron + "secGroupRule:SecGroupRule":       {neutron + "secGroup:SecGroup"},
			// what has a name for its mark is there no longer than what tells whose it is
			nova + "keypair:Keypair":         {neutron + "network:Network"},
			nova + "serverGroup:ServerGroup": {neutron + "network:Network"},
		},
	}
	for name, more := range here {
		for _, disk := range []string{"", "50GiB"} { // of volumes the second, on OpenStack
			for _, keep := range []string{"false", "true"} {
				t.Run(fmt.Sprint(name, " disk ", disk, " keep ", keep), func(t *testing.T) {
					values := preset(t, name, more)
					values[name+".keepImage"] = keep
					if disk != "" {
						values["disk"] = disk
					}
					f, err := cloudProgram(values, stable)
					require.NoError(t, err)
					for kind, others := range goesBefore[name] {
						require.NotEmpty(t, f.all(kind), kind)
						for _, m := range f.all(kind) {
							below := f.below(m)
							for _, other := range others {
								assert.True(t, below[other], "%s %s would not be gone before %s", m.kind, m.name, other)
							}
						}
					}
					for _, m := range f.graph {
						image := slices.Contains([]string{ec2 + "ami:Ami", "aws:ebs/snapshotImport:SnapshotImport", "openstack:images/image:Image"}, m.kind)
						assert.Equal(t, image && keep == "true", m.kept, "%s %s stays when the bed goes", m.kind, m.name)
					}
				})
			}
		}
	}
}
