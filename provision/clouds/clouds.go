// Package clouds knows the clouds that beds can be on: what their configuration keys mean, what a bed there costs, and, in a build with the
// tag clouds, what there is of a bed's by its owner's mark, and how to be rid of it. The machines themselves are Pulumi's own resources, see
// package stacks.
package clouds

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
)

// Names lists the clouds; a configuration's driver is one of them.
func Names() []string { return []string{"aws", "openstack"} }

// Is tells whether the driver is a cloud.
func Is(driver string) bool { return driver == "aws" || driver == "openstack" }

// Named are the clouds that the environment names, with or without who one is there.
func Named() (names []string) {
	for _, cloud := range []struct{ name, one, other string }{{"aws", "AWS_REGION", "AWS_DEFAULT_REGION"}, {"openstack", "OS_CLOUD", "OS_AUTH_URL"}} {
		if os.Getenv(cloud.one) != "" || os.Getenv(cloud.other) != "" {
			names = append(names, cloud.name)
		}
	}
	return names
}

// Info tells what machines of a cloud are.
func Info(driver string) provision.Info {
	on := provision.Info{Name: driver, SSH: true, Image: bed.VM, RootlessKubernetes: true, DiskLimit: true, Concurrency: 16}
	if driver == "aws" {
		on.Image = bed.Raw
	}
	return on
}

// Cloud is what can be asked of a cloud, and removed there, by the marks on it. Its machines are made by Pulumi.
type Cloud interface {
	provision.Beds
	provision.Sweeper
	provision.Expirer
	// Fit finds what keeps the bed from being made there, as far as can be told before anything is.
	Fit(ctx context.Context, spec bed.Spec) []bed.Problem
	// EndOthers ends the machines of the owner, whose name does not count, that have none of those ids, and waits until they are gone.
	EndOthers(ctx context.Context, owner provision.Owner, ids []string) error
}

// The marks on everything of a bed, as tags.
const (
	TagBed     = "bedfellow:bed"
	TagID      = "bedfellow:id"
	TagState   = "bedfellow:state"
	TagExpires = "bedfellow:expires" // RFC 3339
	TagNode    = "bedfellow:node"    // of what is one node's
	TagDigest  = "bedfellow:image"   // of a machine image: what it was made of
	TagKeep    = "bedfellow:keep"    // of what outlasts its bed
	TagRegion  = "bedfellow:region"  // of what is in none, such as a role
)

// RolePath is that of the IAM roles of beds.
const RolePath = "/bedfellow/"

// ErrNotBuilt says that this build knows no cloud's interface.
var ErrNotBuilt = errors.New("this build is without the clouds, whose SDKs take minutes to compile")

// Tags mark what a bed owns. A zero time never expires.
func Tags(owner provision.Owner, expires time.Time) map[string]string {
	tags := map[string]string{TagBed: owner.Bed, TagID: owner.ID, TagState: escape(owner.State)}
	if !expires.IsZero() {
		tags[TagExpires] = expires.UTC().Format(time.RFC3339)
	}
	return tags
}

// OwnerOf reads the mark; ok is false where there is none.
func OwnerOf(tags map[string]string) (owner provision.Owner, expires time.Time, ok bool) {
	owner = provision.Owner{Bed: tags[TagBed], ID: tags[TagID], State: unescape(tags[TagState])}
	expires, _ = time.Parse(time.RFC3339, tags[TagExpires])
	return owner, expires, owner.Bed != ""
}

// Words are tags for who has words for that and no pairs.
func Words(tags map[string]string) (words []string) {
	for key, value := range tags {
		words = append(words, key+"="+value)
	}
	slices.Sort(words)
	return words
}

// Description is a mark for what gets its tags only when it is there, as in Neutron: a maker that is killed in between has marked it all the same.
func Description(tags map[string]string) string {
	return strings.Join([]string{"bedfellow", tags[TagBed], tags[TagID], cmp.Or(tags[TagExpires], "never"), unescape(tags[TagState])}, " ")
}

// Described reads a mark that is in a description; no tags are none.
func Described(text string) map[string]string {
	parts := strings.SplitN(text, " ", 5)
	if len(parts) < 5 || parts[0] != "bedfellow" {
		return nil
	}
	tags := map[string]string{TagBed: parts[1], TagID: parts[2], TagExpires: parts[3], TagState: escape(parts[4])}
	if tags[TagExpires] == "never" {
		delete(tags, TagExpires)
	}
	return tags
}

// Label names what a cloud marks in no other way.
func Label(bedName, id string) string { return "bedfellow-" + bedName + "-" + id }

// others tells whether a thing with those tags is the owner's, under whatever name, and none of those.
func others(tags map[string]string, owner provision.Owner, id string, ids []string) bool {
	found, _, ok := OwnerOf(tags)
	return ok && found.ID == owner.ID && found.State == owner.State && !slices.Contains(ids, id)
}

// escape writes a text with what every service takes in a tag: letters, digits and _.-=. The escapes are a URL's, with = for %.
func escape(text string) string {
	return strings.NewReplacer("%", "=", "~", "=7E").Replace(url.QueryEscape(text))
}

func unescape(text string) string {
	if plain, err := url.QueryUnescape(strings.ReplaceAll(text, "=", "%")); err == nil {
		return plain
	}
	return text
}

// reader takes keys of a cloud's and notes what is wrong with them.
type reader struct {
	cloud    string
	values   map[string]string
	problems bed.Problems
}

func (r *reader) problem(key, reason, remedy string) {
	r.problems = append(r.problems, bed.Problem{Key: r.cloud + "." + key, Value: r.values[key], Reason: reason, Remedy: remedy})
}

func (r *reader) truth(key string) bool {
	switch v := r.values[key]; v {
	case "", "false":
	case "true":
		return true
	default:
		r.problem(key, "must be true or false", "write one of them")
	}
	return false
}

// leastPrefix is the widest range of addresses that may reach a bed's sshd: nobody has a wider one of their own.
const leastPrefix = 8

// source is who may reach the bed's sshd; none is to be found out.
func (r *reader) source(key string) netip.Prefix {
	v := r.values[key]
	if v == "" {
		return netip.Prefix{}
	}
	if a, err := netip.ParseAddr(v); err == nil {
		v = netip.PrefixFrom(a, a.BitLen()).String()
	}
	p, err := netip.ParsePrefix(v)
	switch {
	case err != nil || !p.Addr().Is4():
		r.problem(key, "is no range of IPv4 addresses", "write such as 192.0.2.0/24, or leave it out for the address that you come from")
	case p.Bits() < leastPrefix:
		r.problem(key, fmt.Sprintf("is more than any one place: a bed's sshd is not for the world (at most /%d)", leastPrefix), "write the range that you come from")
	}
	return p.Masked()
}

// addresses are a list of them.
func (r *reader) addresses(key string) (list []string) {
	for _, one := range strings.FieldsFunc(r.values[key], func(c rune) bool { return c == ',' || c == ' ' }) {
		if _, err := netip.ParseAddr(one); err != nil {
			r.problem(key, "are not all addresses: "+one, "write such as 192.0.2.53,198.51.100.53")
		}
		list = append(list, one)
	}
	return list
}

// Check finds what is wrong with a cloud's own keys, and with what a bed there cannot have. Nobody is asked.
func Check(spec bed.Spec) bed.Problems {
	var problems bed.Problems
	switch spec.Driver {
	case "aws":
		_, problems = ReadAWS(spec.Settings)
	case "openstack":
		_, problems = ReadOpenStack(spec.Settings)
	default:
		for i, pool := range spec.Pools {
			if pool.Type != "" {
				problems = append(problems, bed.Problem{Key: fmt.Sprintf("pools[%d].type", i), Value: pool.Type, Reason: "is a cloud's type of machine, and the bed's driver is " + spec.Driver,
					Remedy: "write cpus and memory instead, or -c driver= one of " + strings.Join(Names(), ", ")})
			}
		}
		return problems
	}
	for i := range spec.Pools {
		problems = once(problems, checkType(spec, i)...)
	}
	if spec.TTL == 0 {
		problems = append(problems, bed.Problem{Key: "ttl", Reason: "is not set, and rented machines cost until somebody removes them", Remedy: "write -c ttl=8h, or as long as the bed is for"})
	}
	return problems
}

// Image is what the configuration names of images that are there in the cloud; empty where the bed's own is sent.
func Image(settings map[string]string) string { return settings["ami"] + settings["image"] }

// CheckHost finds what keeps the image that the bed's machines boot from being baked.
func CheckHost(spec bed.Spec) (problems bed.Problems) {
	there := map[string]string{"aws": "aws.ami", "openstack": "openstack.image"}[spec.Driver]
	for i := range spec.Pools {
		name, key := typeName(spec, i)
		t, ok := typeOf(spec.Driver, name)
		if !ok || t.Architecture == Architecture || Image(spec.Settings) != "" {
			continue
		}
		problems = once(problems, bed.Problem{
			Key: key, Value: name, Reason: "is a machine of architecture " + t.Architecture + ", and disks are baked for " + Architecture + " only", Host: true,
			Remedy: "name an image for " + t.Architecture + " that is there with -c " + there + "=…, or choose a type of the other",
		})
	}
	return problems
}

// Architecture is what our disks are baked for, as AWS calls it.
const Architecture = "x86_64"
