package clouds

import (
	"net/netip"

	"github.com/bedfellow/bedfellow/pkg/bed"
)

// OpenStack is what a bed's keys openstack.… say. Who one is there is the environment's, as for every OpenStack tool: OS_CLOUD and a
// clouds.yaml, or the variables OS_….
type OpenStack struct {
	Region          string // empty is the only one, or the environment's
	ExternalNetwork string // that floating addresses are of
	SSHFrom         netip.Prefix
	Nameservers     []string
	Image           string // name of one that is there; empty uploads the bed's
	KeepImage       bool   // after the bed
}

// ReadOpenStack takes the values of a bed's keys openstack.…, without that. All problems are in the result at once; nobody is asked.
func ReadOpenStack(values map[string]string) (OpenStack, bed.Problems) {
	r := &reader{cloud: "openstack", values: values}
	o := OpenStack{
		Region: values["region"], ExternalNetwork: values["externalNetwork"], SSHFrom: r.source("sshFrom"),
		Image: values["image"], KeepImage: r.truth("keepImage"), Nameservers: r.addresses("nameservers"),
	}
	if o.ExternalNetwork == "" {
		r.problem("externalNetwork", "is not set", "write -c openstack.externalNetwork=NAME; `openstack network list --external` shows them")
	}
	return o, r.problems
}
