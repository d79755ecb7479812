//go:build clouds

package main

import (
	"sync"
	"testing"

	p "github.com/pulumi/pulumi-go-provider"
	"github.com/pulumi/pulumi-go-provider/integration"
	presource "github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/property"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A program in any language can have machines of a cloud: what it gives reaches the cloud's resources, and secrets stay secret.
func TestAwsMachinesAreServed(t *testing.T) {
	var mu sync.Mutex
	made := map[string]property.Map{}
	server := serve(t, integration.WithMocks(&integration.MockResourceMonitor{NewResourceF: func(args integration.MockResourceArgs) (string, property.Map, error) {
		mu.Lock()
		defer mu.Unlock()
		made[string(args.TypeToken)] = args.Inputs
		out := args.Inputs
		switch args.TypeToken {
		case "aws:ec2/instance:Instance":
			out = out.Set("publicIp", property.New("192.0.2.1")).Set("privateIp", property.New("10.106.0.11"))
		case "aws:ec2/launchTemplate:LaunchTemplate":
			out = out.Set("latestVersion", property.New(1.0))
		}
		return args.Name + "-id", out, nil
	}, CallF: func(args integration.MockCallArgs) (property.Map, error) {
		return args.Args.Set("id", property.New("ami-1")).Set("rootDeviceName", property.New("/dev/xvda")), nil
	}}))
	text := func(s string) property.Value { return property.New(s) }
	secret := property.New(map[string]property.Value{"b-01": text("the private key")}).WithSecret(true)
	answer, err := server.Construct(p.ConstructRequest{
		Urn: presource.NewURN("stack", "project", "", "bedfellow:index:AwsMachines", "machines"),
		Inputs: property.NewMap(map[string]property.Value{
			"bed": text("b"), "state": text("s3://states"), "network": text("isolated"), "image": text("debian-12"), "bedId": text("life1"), "made": text("2100-01-01T00:00:00Z"),
			"ttl": text("8h"), "userPublicKey": text("ssh-ed25519 AAAA"), "hostKeys": secret, "hostPublicKeys": property.New(map[string]property.Value{"b-01": text("ssh-ed25519 BBBB")}),
			"settings": property.New(map[string]property.Value{"region": text("eu-west-1"), "instanceType": text("c7i.large"), "sshFrom": text("192.0.2.0/24"), "ami": text("ami-0123456789abcdef0")}),
			"nodes": property.New([]property.Value{property.New(map[string]property.Value{
				"name": text("b-01"), "index": property.New(0.0), "role": text("compute"), "cpus": property.New(2.0), "memoryMiB": property.New(4096.0),
			})}),
		}),
	})
	require.NoError(t, err)
	machines := answer.State.Get("machines").AsArray()
	require.Equal(t, 1, machines.Len())
	assert.Equal(t, "192.0.2.1", machines.Get(0).AsMap().Get("address").AsString())
	assert.Equal(t, "ssh-ed25519 AAAA", made["aws:ec2/keyPair:KeyPair"].Get("publicKey").AsString())
	assert.Equal(t, "eu-west-1", made["pulumi:providers:aws"].Get("region").AsString())
	assert.Equal(t, "life1", made["aws:ec2/vpc:Vpc"].Get("tags").AsMap().Get("bedfellow:id").AsString())
	assert.True(t, made["aws:ec2/instance:Instance"].Get("userDataBase64").Secret())

	_, err = server.Construct(p.ConstructRequest{Urn: presource.NewURN("stack", "project", "", "bedfellow:index:AwsMachines", "wrong"), Inputs: property.NewMap(map[string]property.Value{
		"settings": property.New(map[string]property.Value{"region": text("Frankfurt")}),
	})})
	assert.ErrorContains(t, err, `aws.region: "Frankfurt": is not the name of a region`)
}
