// Package provision turns machine specs into running machines. A Driver does that for one kind of machine; package drivers knows
// them all, and package drivertest is the conformance suite that every one of them passes.
package provision

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
)

// Beds are what there is of beds by their owners' marks: a Driver's, or a cloud's, whose machines Pulumi's own resources make.
type Beds interface {
	Info() Info
	// Check tells whether this host or engine can serve at all, each problem with its remedy.
	Check(ctx context.Context) []bed.Problem
	// List shows every machine whose mark has the owner's bed name, whichever state it belongs to, half-made ones included;
	// an empty owner lists all.
	List(ctx context.Context, owner string) ([]Status, error)
}

// Driver turns machine specs into running machines with a reachable sshd.
// All methods are safe for concurrent use on different names and honour ctx.
type Driver interface {
	Beds
	// Create adopts the machine when it runs with the same mark, digest and host key; makes anew any other of this bed. It
	// returns once the machine's sshd answers with the pinned host key. What a failed Create made, it removes.
	Create(ctx context.Context, m Machine) (Status, error)
	// Read tells how the machine is; ErrNotFound when there is none.
	Read(ctx context.Context, name string) (Status, error)
	// Update brings a machine to a changed spec, in place where the driver can, else by making it anew.
	Update(ctx context.Context, m Machine) (Status, error)
	// Delete leaves nothing of the machine; deleting what is not there is no error. With a bed's last machine go the things
	// that its machines shared.
	Delete(ctx context.Context, name string) error
}

// Fitter is a Driver that can tell whether given machines would fit this host, before any is made.
type Fitter interface {
	Fit(ctx context.Context, machines []Machine) []bed.Problem
}

// Sweeper is one whose beds have more than machines: networks, groups, directories. Sweep removes what is left of a bed
// whose machines are deleted or were never finished; a clean bed is no error.
type Sweeper interface {
	// Owners lists the marks of all beds there are, those without a machine included.
	Owners(ctx context.Context) ([]Owner, error)
	Sweep(ctx context.Context, owner Owner) error
}

// Expirer knows when a bed's time is over from more than its machines, which may be gone before the rest of it is. Zero is never.
type Expirer interface {
	Expires(ctx context.Context, owner Owner) (time.Time, error)
}

// Adviser is a Driver that can tell what works on this host and could work better. It hinders nothing, unlike a problem.
type Adviser interface {
	Advise(ctx context.Context) []string
}

// ImageKeeper is a Driver that keeps what it has made of images where its machines are, such as templates of an engine. They outlast beds.
type ImageKeeper interface {
	KeptImages(ctx context.Context) ([]KeptImage, error)
	// RemoveImage removes one that no machine is made of.
	RemoveImage(ctx context.Context, id string) error
}

// Uploader is a Driver that goes on with uploads of images that were cut short.
type Uploader interface {
	// ClearUploads removes what those of this host have left that nobody is at.
	ClearUploads(ctx context.Context) error
}

// KeptImage is an image as a driver keeps it.
type KeptImage struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Digest string `json:"digest"`
	Used   int    `json:"used"` // by how many machines, whosever they are
}

// Info tells what a driver is.
type Info struct {
	Name string
	// SSH is false for machines that exist on paper only: nothing is asked of them and nothing configured.
	SSH bool
	// SharedKernel machines run on the host's kernel and see its CPUs and memory.
	SharedKernel bool
	// Image is the form of the baked image that the machines boot from; empty when they need none.
	Image bed.ImageFormat
	// RootlessKubernetes can run in these machines on this host.
	RootlessKubernetes bool
	// Emulated machines take some fifteen times as long for everything as this host would: every time-out is longer.
	Emulated bool
	// DiskLimit tells whether a machine's disk size can be set.
	DiskLimit bool
	// Concurrency is how many machines may be made at once.
	Concurrency int
}

// Owner is the mark on everything a bed has made.
type Owner struct {
	Bed   string `json:"bed" pulumi:"bed"`     // unique per host or engine
	ID    string `json:"id" pulumi:"id"`       // random, made with the bed's keys: a lost state makes another
	State string `json:"state" pulumi:"state"` // URL of the Pulumi state that knows the bed, # and the stack
}

// Same tells whether two marks are of one bed in one state, possibly of different lives of it.
func (o Owner) Same(p Owner) bool { return o.Bed == p.Bed && o.State == p.State }

// ForeignError says that a bed of this name belongs to another state. Nothing was touched.
type ForeignError struct{ Have, Want Owner }

func (e *ForeignError) Error() string {
	return fmt.Sprintf("a bed named %s is up already and belongs to the state %s, not to %s; it was not touched. "+
		"Give this bed another name with -c name=…, or destroy the other from its own folder", e.Have.Bed, e.Have.State, e.Want.State)
}

// Machine is one machine as asked for.
type Machine struct {
	Name  string
	Owner Owner
	Index int // position in the bed, from 0; static addresses derive from it
	Role  bed.Role
	CPUs  int
	// Memory and Disk in bytes; Disk 0 leaves it to the driver.
	Memory, Disk bed.Size
	Image        string // path of the image in the driver's format
	ImageDigest  string
	Network      string // isolated, outbound
	User         string
	// AuthorizedKey may log in as User. HostKey is the machine's private key, OpenSSH PEM, a secret; HostPublicKey belongs to it.
	AuthorizedKey, HostKey, HostPublicKey string
	Expires                               time.Time // zero: never
	Slow                                  bool      // emulated: every time-out is longer
}

// Digest is a fingerprint of all that makes two machines of a name the same machine. Secrets enter it by their public half.
func (m Machine) Digest() string {
	m.HostKey = ""
	m.Expires = time.Time{}
	m.Image = "" // a path: the digest says what is in it
	data, err := json.Marshal(m)
	if err != nil {
		panic(err) // a struct of strings and numbers
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:16])
}

// State says how a machine is.
type State string

// A Running machine's processes are all there; a Stopped one has none; a Broken one is half of something: half made, half
// deleted, or with its supervisor killed.
const (
	Running State = "running"
	Stopped State = "stopped"
	Broken  State = "broken"
)

// Status is one machine as found.
type Status struct {
	Name           string
	Owner          Owner
	State          State
	Detail         string // why it is not running
	Digest         string // of the Machine it was made from
	Address        string // where this host reaches its sshd, with Port
	Port           int
	Via            string // the machine of its bed through which alone that is so, or empty; Create has waited for that one then
	BedAddress     string // where its siblings reach it
	HostPublicKey  string
	Incarnation    string // changes when its disk is made anew
	HostCPUs       string // the host's CPUs that run it, where the driver pins
	Oversubscribed bool   // another machine runs on them too
	Expires        time.Time
}

// OwnersOf are the marks on machines, each once.
func OwnersOf(machines []Status) (owners []Owner) {
	for _, st := range machines {
		if !slices.Contains(owners, st.Owner) {
			owners = append(owners, st.Owner)
		}
	}
	return owners
}

// ErrNotFound says that there is no machine of that name.
var ErrNotFound = errors.New("no such machine")
