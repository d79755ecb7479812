package stacks

import (
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi"
)

// The four resources as a Pulumi program sees them. Their inputs are those of package provider, which the engine checks against
// the schema.

type image struct {
	pulumi.CustomResourceState
	Digest pulumi.StringOutput `pulumi:"digest"`
	Path   pulumi.StringOutput `pulumi:"path"`
}

type keys struct {
	pulumi.CustomResourceState
	BedID          pulumi.StringOutput    `pulumi:"bedId"`
	Made           pulumi.StringOutput    `pulumi:"made"`
	UserPrivateKey pulumi.StringOutput    `pulumi:"userPrivateKey"`
	UserPublicKey  pulumi.StringOutput    `pulumi:"userPublicKey"`
	HostKeys       pulumi.StringMapOutput `pulumi:"hostKeys"`
	HostPublicKeys pulumi.StringMapOutput `pulumi:"hostPublicKeys"`
	MungeKey       pulumi.StringOutput    `pulumi:"mungeKey"`
	CurveKey       pulumi.StringOutput    `pulumi:"curveKey"`
}

type pool struct {
	pulumi.CustomResourceState
	Machines pulumi.ArrayOutput `pulumi:"machines"`
}

type configuration struct {
	pulumi.CustomResourceState
}

type ownProvider struct {
	pulumi.ProviderResourceState
}
