package engine_test

import (
	"testing"

	"github.com/pulumi/pulumi/sdk/v3/go/auto/events"
	"github.com/pulumi/pulumi/sdk/v3/go/common/apitype"
	"github.com/stretchr/testify/assert"

	"github.com/bedfellow/bedfellow/stacks/engine"
)

// What is gone of a cloud's is named, and not what is there; an error is kept without the engine's marks.
func TestWhatTheEngineSaysIsKept(t *testing.T) {
	resource := func(op apitype.OpType) (e events.EngineEvent) {
		e.ResOutputsEvent = &apitype.ResOutputsEvent{Metadata: apitype.StepEventMetadata{
			Op: op, URN: "urn:pulumi:os::bedfellow::bedfellow:index:Bed$bedfellow:index:OpenStackMachines$openstack:compute/instance:Instance::os-0" + string(op[:1]),
		}}
		return e
	}
	var wrong events.EngineEvent
	wrong.DiagnosticEvent = &apitype.DiagnosticEvent{Severity: "error", Message: "<{%reset%}>no such flavor<{%reset%}>\n"}
	errors, gone := engine.Heard(resource(apitype.OpRefresh), resource(apitype.OpDelete), wrong, resource(apitype.OpSame))
	assert.Equal(t, []string{"os-0d (Instance)"}, gone)
	assert.Equal(t, []string{"no such flavor"}, errors)
}
