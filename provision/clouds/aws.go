package clouds

import (
	"net/netip"
	"os"
	"regexp"
	"strings"

	"github.com/bedfellow/bedfellow/pkg/bed"
)

// AWS is what a bed's keys aws.… say.
type AWS struct {
	Region, Zone   string // us-east-1, us-east-1a
	ThreadsPerCore int    // 0 is the type's own
	EFA            bool   // an adapter for each node that computes
	Spot           bool
	SSHFrom        netip.Prefix // zero: the address that the program's calls come from
	// AMI is a machine image that is there, and AMIOwner the account it is of: self, or digits. None is made of the bed's image.
	AMI, AMIOwner string
	KeepImage     bool // after the bed, with its snapshot
}

var (
	awsRegion  = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-\d+$`)
	awsType    = regexp.MustCompile(`^[a-z][a-z0-9-]*\.[a-z0-9-]+$`)
	awsAMI     = regexp.MustCompile(`^ami-[0-9a-f]{8,17}$`)
	awsAccount = regexp.MustCompile(`^(self|\d{12})$`)
)

// ReadAWS takes the values of a bed's keys aws.…, without that. All problems are in the result at once; nobody is asked.
func ReadAWS(values map[string]string) (AWS, bed.Problems) {
	r := &reader{cloud: "aws", values: values}
	a := AWS{
		Region: values["region"], Zone: values["zone"], EFA: r.truth("efa"), Spot: r.truth("spot"), SSHFrom: r.source("sshFrom"),
		AMI: values["ami"], AMIOwner: values["amiOwner"], KeepImage: r.truth("keepImage"),
	}
	if a.Region == "" {
		a.Region = os.Getenv("AWS_REGION")
	}
	if a.Region == "" {
		a.Region = os.Getenv("AWS_DEFAULT_REGION")
	}
	switch {
	case a.Region == "":
		r.problem("region", "is not set", "write -c aws.region=us-east-1, or set AWS_REGION")
	case !awsRegion.MatchString(a.Region):
		r.problem("region", "is not the name of a region", "write such as us-east-1")
	}
	if a.Zone == "" {
		a.Zone = a.Region + "a"
	} else if zone, ok := strings.CutPrefix(a.Zone, a.Region); !ok || len(zone) != 1 {
		r.problem("zone", "is not a zone of region "+a.Region, "write such as "+a.Region+"a: a bed is in one zone, and that in its region")
	}
	switch values["threadsPerCore"] {
	case "":
	case "1":
		a.ThreadsPerCore = 1
	case "2":
		a.ThreadsPerCore = 2
	default:
		r.problem("threadsPerCore", "must be 1 or 2", "write 1 for a process per core, or leave it to the type")
	}
	if a.AMI != "" && !awsAMI.MatchString(a.AMI) {
		r.problem("ami", "is not the id of a machine image", "write such as ami-0123456789abcdef0, or leave it out for one of the bed's image")
	}
	if a.AMIOwner == "" {
		a.AMIOwner = "self"
	} else if !awsAccount.MatchString(a.AMIOwner) {
		r.problem("amiOwner", "is no account", "write its 12 digits, or self")
	}
	return a, r.problems
}
