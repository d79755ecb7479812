package ovirt

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	ovirtsdk "github.com/ovirt/go-ovirt"

	"github.com/bedfellow/bedfellow/pkg/bed"
)

// place is where in an engine machines are made, by id.
type place struct {
	dataCenter, cluster, storageDomain, vnicProfile string
	template                                        string // empty leaves it to the image
}

// named is what the engine has of a kind.
type named struct{ id, name string }

// choose finds what a key names, by name or id, or the only one there is.
func choose(key, value, kind string, have []named) (string, *bed.Problem) {
	if value == "" && len(have) == 1 {
		return have[0].id, nil
	}
	var names []string
	for _, h := range have {
		if value != "" && (h.id == value || h.name == value) {
			return h.id, nil
		}
		names = append(names, h.name)
	}
	slices.Sort(names)
	reason := "is not given, and there are several: " + strings.Join(names, ", ")
	switch {
	case len(have) == 0:
		reason = "is to be found, and the engine shows this user none"
	case value != "":
		reason = "is no " + kind + " that the engine shows this user; there is " + strings.Join(names, ", ")
	}
	remedy := "name one with -c ovirt." + key + "=…"
	if n := bed.Nearest(value, names); value != "" && n != "" {
		remedy = "did you mean " + n + "?"
	}
	return "", &bed.Problem{Key: "ovirt." + key, Value: value, Host: true, Reason: reason, Remedy: remedy}
}

// identified is what go-ovirt's objects have in common.
type identified interface {
	Id() (string, bool)
	Name() (string, bool)
}

func list[T identified](objects []T) (out []named) {
	for _, o := range objects {
		id, _ := o.Id()
		name, _ := o.Name()
		out = append(out, named{id, name})
	}
	return out
}

// where finds the place that the settings name. Problems are what the engine does not have, and open is what is yet to be chosen.
func (c *client) where(ctx context.Context) (at place, problems, open bed.Problems, err error) {
	get := func(path string) ([]byte, error) { return c.call(ctx, http.MethodGet, path, nil, nil) }
	pick := func(key, value, kind string, have []named) string {
		id, problem := choose(key, value, kind, have)
		switch {
		case problem == nil:
		case value == "" && len(have) > 1:
			open = append(open, *problem)
		default:
			problems = append(problems, *problem)
		}
		return id
	}
	data, err := get("/datacenters")
	centers, err := many(data, err, ovirtsdk.XMLDataCenterReadMany)
	if err != nil {
		return at, nil, nil, err
	}
	if at.dataCenter = pick("dataCenter", c.settings.DataCenter, "data center", list(centers.Slice())); at.dataCenter == "" {
		return at, problems, open, nil
	}
	below := "/datacenters/" + at.dataCenter
	data, err = get(below + "/clusters")
	clusters, err := many(data, err, ovirtsdk.XMLClusterReadMany)
	if err != nil {
		return at, nil, nil, err
	}
	at.cluster = pick("cluster", c.settings.Cluster, "cluster of that data center", list(clusters.Slice()))
	data, err = get(below + "/storagedomains")
	domains, err := many(data, err, ovirtsdk.XMLStorageDomainReadMany)
	if err != nil {
		return at, nil, nil, err
	}
	active := slices.DeleteFunc(slices.Clone(domains.Slice()), func(d *ovirtsdk.StorageDomain) bool {
		kind, _ := d.Type()
		status, has := d.Status()
		return kind != ovirtsdk.STORAGEDOMAINTYPE_DATA || has && status != ovirtsdk.STORAGEDOMAINSTATUS_ACTIVE
	})
	at.storageDomain = pick("storageDomain", c.settings.StorageDomain, "active storage domain for data in that data center", list(active))
	data, err = get(below + "/networks")
	networks, err := many(data, err, ovirtsdk.XMLNetworkReadMany)
	if err != nil {
		return at, nil, nil, err
	}
	data, err = get("/vnicprofiles")
	profiles, err := many(data, err, ovirtsdk.XMLVnicProfileReadMany)
	if err != nil {
		return at, nil, nil, err
	}
	here := slices.DeleteFunc(slices.Clone(profiles.Slice()), func(p *ovirtsdk.VnicProfile) bool {
		network, _ := p.Network()
		return !slices.ContainsFunc(networks.Slice(), func(n *ovirtsdk.Network) bool { return idOf(n) == idOf(network) })
	})
	at.vnicProfile = pick("vnicProfile", c.settings.VnicProfile, "vNIC profile of that data center's networks", list(here))
	if name := c.settings.Template; name != "" {
		data, err = get("/templates")
		templates, err := many(data, err, ovirtsdk.XMLTemplateReadMany)
		if err != nil {
			return at, nil, nil, err
		}
		at.template = pick("template", name, "template", versions(templates.Slice(), name))
	}
	return at, problems, open, nil
}

// versions are the newest of each name among templates, or the one that NAME:NUMBER means: all versions of a template have its name.
func versions(templates []*ovirtsdk.Template, value string) (have []named) {
	newest := map[string]int64{}
	for i, t := range list(templates) {
		number := int64(1)
		if v, ok := templates[i].Version(); ok {
			if n, ok := v.VersionNumber(); ok {
				number = n
			}
		}
		if value == t.id || value == fmt.Sprintf("%s:%d", t.name, number) {
			return []named{{t.id, value}}
		}
		at := slices.IndexFunc(have, func(h named) bool { return h.name == t.name })
		switch {
		case at < 0:
			have = append(have, t)
		case number > newest[t.name]:
			have[at] = t
		default:
			continue
		}
		newest[t.name] = number
	}
	return have
}

func idOf(o interface{ Id() (string, bool) }) string {
	id, _ := o.Id()
	return id
}

// describe names an engine for people.
func (c *client) describe(ctx context.Context) (string, error) {
	data, err := c.call(ctx, http.MethodGet, "", nil, nil)
	api, err := one(data, err, ovirtsdk.XMLApiReadOne)
	if err != nil {
		return "", err
	}
	about := "an engine"
	if product, ok := api.ProductInfo(); ok {
		if name, ok := product.Name(); ok {
			about = name
		}
		if version, ok := product.Version(); ok {
			if full, ok := version.FullVersion(); ok {
				about += " " + full
			}
		}
	}
	return fmt.Sprintf("%s at %s", about, c.settings.URL), nil
}
