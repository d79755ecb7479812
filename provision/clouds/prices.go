package clouds

import (
	"bytes"
	"cmp"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/bedfellow/bedfellow/pkg/bed"
)

// Prices are what machines of clouds are and cost. Figures of a month are of 730 hours.
type Prices struct {
	Date   string               `json:"date"` // of the list, year and month
	Clouds map[string]PriceList `json:"clouds"`
}

// PriceList is one cloud's.
type PriceList struct {
	Source       string          `json:"source"`
	Region       string          `json:"region,omitempty"` // whose prices these are, where they differ
	Currency     string          `json:"currency"`
	DiskGiBMonth float64         `json:"diskGiBMonth"` // of a GiB of a machine's disk
	AddressHour  float64         `json:"addressHour"`  // of a public IPv4 address
	Types        map[string]Type `json:"types"`
}

// Type is a kind of machine.
type Type struct {
	VCPUs          int     `json:"vcpus"`
	ThreadsPerCore int     `json:"threadsPerCore"`
	MemoryGiB      int     `json:"memoryGiB"`
	Architecture   string  `json:"architecture"` // as AWS has it: x86_64, arm64
	EFA            bool    `json:"efa"`          // has an Elastic Fabric Adapter
	PerHour        float64 `json:"perHour"`
	Region         string  `json:"region,omitempty"` // where that is the price, if it is not the list's: there are none
}

//go:embed prices.json
var ownPrices []byte

const monthHours = 730

// ReadPrices reads a list of the form of this package's prices.json; an empty path is that one.
func ReadPrices(path string) (Prices, error) {
	data := ownPrices
	if path != "" {
		var err error
		if data, err = os.ReadFile(path); err != nil {
			return Prices{}, bed.Problems{{Key: "--prices", Value: path, Reason: "cannot be read: " + err.Error(), Remedy: "name a file such as provision/clouds/prices.json"}}
		}
	}
	var p Prices
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	err := d.Decode(&p)
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = fmt.Errorf("there is something after its end")
		}
	}
	if err == nil {
		err = p.check()
	}
	if err != nil {
		return Prices{}, bed.Problems{{Key: "--prices", Value: path, Reason: "is no list of prices: " + err.Error(), Remedy: "take provision/clouds/prices.json for a pattern"}}
	}
	return p, nil
}

func (p Prices) check() error {
	if p.Date == "" {
		return fmt.Errorf("it has no date")
	}
	for cloud, list := range p.Clouds {
		if !Is(cloud) {
			return fmt.Errorf("%q is none of %v", cloud, Names())
		}
		if list.Currency == "" || list.DiskGiBMonth < 0 || list.AddressHour < 0 {
			return fmt.Errorf("%s has no currency, or a price below zero", cloud)
		}
		for name, t := range list.Types {
			if t.VCPUs < 1 || t.MemoryGiB < 1 || t.PerHour < 0 || t.ThreadsPerCore < 1 || t.VCPUs%t.ThreadsPerCore != 0 {
				return fmt.Errorf("type %s of %s has no CPUs or memory, or a price below zero", name, cloud)
			}
		}
	}
	return nil
}

// DefaultDisk is that of a node on AWS whose configuration does not say. On OpenStack it is the flavor's, which no list has.
const DefaultDisk = 40 * bed.GiB

// Estimate is what a bed takes and costs.
type Estimate struct {
	Cloud     string  `json:"cloud"`
	Types     []Count `json:"types"` // in the order of the pools
	Instances int     `json:"instances"`
	VCPUs     int     `json:"vcpus"` // that processes may use, in all, as are the others
	MemoryGiB float64 `json:"memoryGiB"`
	DiskGiB   float64 `json:"diskGiB"`
	Addresses int     `json:"addresses"` // public
	Hours     float64 `json:"hours"`     // until it expires
	Spot      bool    `json:"spot"`
	// PerHour and Total are in Currency; HasPrice is false where the list has not all types.
	HasPrice bool    `json:"hasPrice"`
	Currency string  `json:"currency,omitempty"`
	PerHour  float64 `json:"perHour"`
	Total    float64 `json:"total"`
	Date     string  `json:"date,omitempty"`
	Source   string  `json:"source,omitempty"`
	Region   string  `json:"region,omitempty"` // whose prices these are, where they differ
}

// Count is how many machines of a type there are.
type Count struct {
	Type      string `json:"type"`
	Instances int    `json:"instances"`
}

// EstimateOf adds up what the bed takes and what the list says that it costs, traffic and the image's storage not included.
func EstimateOf(spec bed.Spec, prices Prices) Estimate {
	e := Estimate{Cloud: spec.Driver, Instances: spec.Size(), Addresses: spec.Size(), Hours: spec.TTL.Hours(), Spot: spec.Settings["spot"] == "true", Date: prices.Date}
	if spec.Driver == "openstack" {
		e.Addresses = 1 // the control node's
	}
	list := prices.Clouds[spec.Driver]
	e.HasPrice = true
	var regions []string
	for i, pool := range spec.Pools {
		name, _ := typeName(spec, i)
		if at := slices.IndexFunc(e.Types, func(c Count) bool { return c.Type == name }); at >= 0 {
			e.Types[at].Instances += pool.Nodes
		} else {
			e.Types = append(e.Types, Count{name, pool.Nodes})
		}
		t, ok := list.Types[name]
		e.PerHour, e.HasPrice = e.PerHour+float64(pool.Nodes)*t.PerHour, e.HasPrice && ok
		if region := cmp.Or(t.Region, list.Region); !slices.Contains(regions, region) {
			regions = append(regions, region)
		}
	}
	for _, n := range spec.Nodes() {
		e.VCPUs += n.CPUs
		e.MemoryGiB += float64(n.Memory) / float64(bed.GiB)
		disk := n.Disk
		if disk == 0 && spec.Driver == "aws" {
			disk = DefaultDisk
		}
		e.DiskGiB += float64(disk) / float64(bed.GiB)
	}
	if !e.HasPrice {
		e.PerHour = 0
		return e
	}
	e.Currency, e.Source, e.Region = list.Currency, list.Source, strings.Join(regions, " and ")
	e.PerHour += e.DiskGiB*list.DiskGiBMonth/monthHours + float64(e.Addresses)*list.AddressHour
	e.Total = e.PerHour * e.Hours
	return e
}

// String says it for people.
func (e Estimate) String() string {
	var b strings.Builder
	disks := "the flavors' own disks"
	if e.DiskGiB > 0 {
		disks = fmt.Sprintf("%g GiB of disk", e.DiskGiB)
	}
	var kinds, names []string
	for _, c := range e.Types {
		kinds, names = append(kinds, fmt.Sprintf("%d × %s", c.Instances, c.Type)), append(names, c.Type)
	}
	fmt.Fprintf(&b, "%s on %s: in all %d CPUs, %g GiB of memory, %s, public addresses: %d", strings.Join(kinds, ", "), e.Cloud, e.VCPUs, e.MemoryGiB, disks, e.Addresses)
	if e.Hours > 0 {
		fmt.Fprintf(&b, "; meant to live %g h", e.Hours)
	}
	if !e.HasPrice {
		fmt.Fprintf(&b, "\nno price: the list of %s has not all of %s; --prices FILE names another", e.Date, strings.Join(names, ", "))
		return b.String()
	}
	fmt.Fprintf(&b, "\nabout %.2f %s an hour", e.PerHour, e.Currency)
	if e.Hours > 0 {
		fmt.Fprintf(&b, ", %.2f %s until it expires", e.Total, e.Currency)
	}
	if e.Spot {
		b.WriteString(", on demand: spot costs less, by the market")
	}
	date := e.Date
	if e.Region != "" {
		date += " in " + e.Region
	}
	fmt.Fprintf(&b, " (prices of %s, traffic not included)", date)
	return b.String()
}
