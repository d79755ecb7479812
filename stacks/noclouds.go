//go:build !clouds

package stacks

import (
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi"

	"github.com/bedfellow/bedfellow/provision/clouds"
)

// machines of a cloud are not in this build: the SDKs of the clouds take minutes to compile.
func (r rented) machines(*pulumi.Context, pulumi.ResourceOption) (pulumi.ArrayOutput, error) {
	return pulumi.ArrayOutput{}, clouds.ErrNotBuilt
}
