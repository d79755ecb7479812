//go:build !clouds

package stacks

import (
	"github.com/pulumi/pulumi-go-provider/infer"
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi"

	"github.com/bedfellow/bedfellow/provision/clouds"
)

// Components are what this build has for other languages: the bed.
func Components() []infer.InferredComponent {
	return []infer.InferredComponent{infer.ComponentF(NewBed)}
}

// rent has no clouds in this build: their SDKs take minutes to compile.
func rent(*pulumi.Context, string, string, MachinesArgs, pulumi.ResourceOption) (pulumi.ArrayOutput, error) {
	return pulumi.ArrayOutput{}, clouds.ErrNotBuilt
}
