//go:build clouds

package clouds

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
)

type object = map[string]any

// fakeOpenStack stands in for a cloud at its HTTP interfaces. It keeps what is there, and refuses what the real services refuse.
type fakeOpenStack struct {
	*httptest.Server
	mu     sync.Mutex
	there  map[string][]object // by collection
	polls  int                 // how often one looks at a server that is being removed until it is gone
	held   map[string]int      // things that something else holds: for how many requests, below zero for ever
	limits object              // Nova's
	quota  object              // Neutron's, of floating addresses
	quotas object              // Neutron's, of all else
	space  object              // Cinder's limits
	errors []int               // what the next requests are answered with, but those for a token
	silent chan struct{}       // while it is open, nobody tells versions; nil is closed
	asked  []string            // requests that change something
}

const (
	fakePassword = "swordfish"
	fakeRegion   = "RegionOne"
	fakePage     = 2 // things per page
)

// newFakeOpenStack starts one, with an empty project that the environment names.
func newFakeOpenStack(t *testing.T) *fakeOpenStack {
	f := &fakeOpenStack{there: map[string][]object{}, held: map[string]int{}, polls: 1}
	f.limits = object{"maxTotalCores": 20, "totalCoresUsed": 0, "maxTotalInstances": 10, "totalInstancesUsed": 0, "maxTotalRAMSize": -1, "totalRAMUsed": 0}
	f.quota = object{"limit": 5, "used": 1, "reserved": 0}
	f.quotas, f.space = object{}, object{"maxTotalVolumes": -1, "maxTotalVolumeGigabytes": -1}
	for _, kind := range []string{"network", "subnet", "router", "port", "security_group"} {
		f.quotas[kind] = object{"limit": -1, "used": 3, "reserved": 0}
	}
	f.add("flavors",
		object{"id": "1", "name": "m1.small", "vcpus": 1, "ram": 2048, "disk": 20},
		object{"id": "2", "name": "m3.quad", "vcpus": 4, "ram": 15360, "disk": 20},
		object{"id": "3", "name": "m3.tiny", "vcpus": 1, "ram": 1024, "disk": 0})
	f.add("networks", object{"id": "public", "name": "public", "router:external": true, "tags": []string{}})
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	for _, name := range []string{"OS_CLOUD", "OS_TOKEN", "OS_REGION_NAME", "OS_INTERFACE", "OS_CLIENT_CONFIG_FILE", "OS_PROJECT_ID", "OS_CACERT"} {
		t.Setenv(name, "")
	}
	for name, value := range map[string]string{ // as an openrc file has them
		"OS_AUTH_URL": f.URL + "/v3", "OS_USERNAME": "someone", "OS_PASSWORD": fakePassword, "OS_USER_DOMAIN_NAME": "Default",
		"OS_PROJECT_NAME": "ours", "OS_PROJECT_DOMAIN_NAME": "Default",
	} {
		t.Setenv(name, value)
	}
	return f
}

func (f *fakeOpenStack) add(collection string, things ...object) {
	f.there[collection] = append(f.there[collection], things...)
}

// ids are those of all things but what was there from the first.
func (f *fakeOpenStack) ids() (ids []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for collection, things := range f.there {
		for _, o := range things {
			if collection != "flavors" && o["id"] != "public" {
				ids = append(ids, o["id"].(string))
			}
		}
	}
	slices.Sort(ids)
	return ids
}

func (f *fakeOpenStack) find(collection string, is func(object) bool) object {
	if i := slices.IndexFunc(f.there[collection], is); i >= 0 {
		return f.there[collection][i]
	}
	return nil
}

func (f *fakeOpenStack) drop(collection string, is func(object) bool) {
	f.there[collection] = slices.DeleteFunc(f.there[collection], is)
}

func has(key string, value any) func(object) bool {
	return func(o object) bool { return o[key] == value }
}

func (f *fakeOpenStack) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Method != http.MethodGet && r.URL.Path != "/v3/auth/tokens" {
		f.asked = append(f.asked, r.Method+" "+r.URL.Path)
	}
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case r.URL.Path == "/v3/auth/tokens":
		f.token(w, r)
	case r.URL.Path == "/network/" || r.URL.Path == "/image/":
		if f.silent != nil {
			<-f.silent
		}
		answer(w, 200, object{"versions": []object{{"id": "v2.0", "status": "CURRENT"}}})
	case r.Header.Get("X-Auth-Token") != "token":
		answer(w, 401, object{"error": object{"message": "The request you have made requires authentication."}})
	case path[0] == "network" && path[2] == "quotas":
		all := maps.Clone(f.quotas)
		all["floatingip"] = f.quota
		answer(w, 200, object{"quota": all})
	case len(f.errors) > 0:
		answer(w, f.errors[0], nil)
		f.errors = f.errors[1:]
	case path[0] == "network" && r.Method == http.MethodPut:
		f.removeInterface(w, r, path[3])
	case path[0] == "volume" && path[len(path)-1] == "limits":
		answer(w, 200, object{"limits": object{"absolute": f.space}})
	case path[2] == "limits":
		answer(w, 200, object{"limits": object{"absolute": f.limits}})
	case r.Method == http.MethodDelete:
		f.remove(w, path[len(path)-2], path[len(path)-1])
	case path[2] == "servers" && path[3] != "detail":
		f.look(w, path[3])
	default:
		f.list(w, r, path)
	}
}

func answer(w http.ResponseWriter, status int, body object) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if body != nil {
		_ = json.NewEncoder(w).Encode(body)
	}
}

// refuse answers as Neutron does. Nova and Keystone wrap their words in other keys, see look and token.
func refuse(w http.ResponseWriter, status int, format string, args ...any) {
	answer(w, status, object{"NeutronError": object{"type": "Error", "message": fmt.Sprintf(format, args...), "detail": ""}})
}

func (f *fakeOpenStack) token(w http.ResponseWriter, r *http.Request) {
	var asked struct {
		Auth struct {
			Identity struct {
				Password struct {
					User struct {
						Name, Password string
						Domain         struct{ Name string }
					}
				}
			}
			Scope struct{ Project struct{ Name string } }
		}
	}
	_ = json.NewDecoder(r.Body).Decode(&asked)
	if u := asked.Auth.Identity.Password.User; u.Name != "someone" || u.Password != fakePassword || u.Domain.Name != "Default" || asked.Auth.Scope.Project.Name != "ours" {
		answer(w, 401, object{"error": object{"code": 401, "message": "The request you have made requires authentication.", "title": "Unauthorized"}})
		return
	}
	var catalog []object
	for kind, path := range map[string]string{"compute": "/compute/v2.1", "network": "/network", "image": "/image", "block-storage": "/volume/v3/project-1"} {
		catalog = append(catalog, object{"type": kind, "endpoints": []object{{"interface": "public", "region": fakeRegion, "region_id": fakeRegion, "url": f.URL + path}}})
	}
	w.Header().Set("X-Subject-Token", "token")
	answer(w, 201, object{"token": object{"catalog": catalog, "project": object{"id": "project-1", "name": "ours"}, "expires_at": "2099-01-01T00:00:00.000000Z"}})
}

// list answers with a page of a collection, and where the next is. Filters are of what the services can filter by.
func (f *fakeOpenStack) list(w http.ResponseWriter, r *http.Request, path []string) {
	collection := path[len(path)-1]
	if collection == "detail" {
		collection = path[len(path)-2]
	}
	var found []object
	for _, o := range f.there[collection] {
		shown := true
		for key, want := range r.URL.Query() {
			have, ok := o[key]
			if !ok && (key == "project_id" || key == "owner") {
				have = "project-1" // most are ours
			}
			shown = shown && (key == "marker" || fmt.Sprint(have) == want[0])
		}
		if shown {
			if collection == "servers" { // Nova's list has no faults of other cells'
				o = maps.Clone(o)
				delete(o, "fault")
			}
			found = append(found, o)
		}
	}
	if marker := r.URL.Query().Get("marker"); marker != "" {
		found = found[slices.IndexFunc(found, has("id", marker))+1:]
	}
	body := object{}
	if collection != "os-server-groups" && len(found) > fakePage { // groups have no pages
		found = found[:fakePage]
		query := r.URL.Query()
		query.Set("marker", found[fakePage-1]["id"].(string))
		if path[0] == "image" {
			body["next"] = "/v2/images?" + query.Encode()
		} else {
			body[strings.ReplaceAll(collection, "-", "_")+"_links"] = []object{{"rel": "next", "href": f.URL + r.URL.Path + "?" + query.Encode()}}
		}
	}
	body[strings.ReplaceAll(strings.TrimPrefix(collection, "os-"), "-", "_")] = append([]object{}, found...)
	answer(w, 200, body)
}

// look is at a server; often enough at one that is being removed, and it is gone.
func (f *fakeOpenStack) look(w http.ResponseWriter, id string) {
	s := f.find("servers", has("id", id))
	if s != nil && s["OS-EXT-STS:task_state"] == "deleting" {
		left, _ := s["left"].(int)
		if left <= 1 {
			f.ended(id)
			s = nil
		} else {
			s["left"] = left - 1
		}
	}
	if s == nil {
		answer(w, 404, object{"itemNotFound": object{"code": 404, "message": "Instance " + id + " could not be found."}})
		return
	}
	answer(w, 200, object{"server": s})
}

// ended lets go what the server held: ports that were there before it stay, and its volumes do not.
func (f *fakeOpenStack) ended(id string) {
	f.drop("servers", has("id", id))
	f.drop("volumes", has("server", id))
	for _, p := range f.there["ports"] {
		if p["device_id"] == id {
			p["device_id"], p["device_owner"] = "", ""
		}
	}
}

// inUse tells what keeps a thing from being removed.
func (f *fakeOpenStack) inUse(collection string, o object) (status int, why string) {
	id := o["id"].(string)
	port := func(is func(p object) bool) bool {
		return f.find("ports", func(p object) bool { return p["device_owner"] != "network:dhcp" && is(p) }) != nil
	}
	switch {
	case f.held[id] != 0:
		f.held[id]--
		if collection == "volumes" { // Cinder has its own way to say so
			return 400, "Invalid volume: Volume status must be available"
		}
		return 409, id + " is busy"
	case collection == "ports" && strings.HasPrefix(o["device_owner"].(string), "network:"):
		return 409, "Port " + id + " cannot be deleted directly via the port API"
	case collection == "routers" && port(has("device_id", id)):
		return 409, "Router " + id + " has ports still attached: " + f.find("ports", has("device_id", id))["id"].(string)
	case collection == "subnets" && port(has("subnet", id)):
		return 409, "Unable to complete operation on subnet " + id + ": One or more ports have an IP allocation from this subnet."
	case collection == "networks" && port(has("network_id", id)):
		return 409, "Unable to complete operation on network " + id + ". There are one or more ports still in use on the network."
	case collection == "security-groups" && port(func(p object) bool { return slices.Contains(p["security_groups"].([]string), id) }):
		return 409, "Security Group " + id + " in use."
	case collection == "images" && f.find("volumes", func(v object) bool { return v["volume_image_metadata"].(object)["image_id"] == id }) != nil:
		return 409, "Image " + id + " could not be deleted because it is in use"
	}
	return 0, ""
}

func (f *fakeOpenStack) remove(w http.ResponseWriter, collection, id string) {
	o := f.find(collection, has("id", id))
	if o == nil {
		refuse(w, 404, "%s %s could not be found", collection, id)
		return
	}
	if status, why := f.inUse(collection, o); status != 0 {
		refuse(w, status, "%s", why)
		return
	}
	switch collection {
	case "servers": // it takes a while
		if o["OS-EXT-STS:task_state"] != "deleting" {
			o["OS-EXT-STS:task_state"], o["left"] = "deleting", f.polls
		}
	case "networks":
		f.drop("subnets", has("network_id", id))
		f.drop("ports", has("network_id", id))
		fallthrough
	default:
		f.drop(collection, has("id", id))
	}
	w.WriteHeader(http.StatusNoContent)
}

func (f *fakeOpenStack) removeInterface(w http.ResponseWriter, r *http.Request, router string) {
	var asked struct {
		PortID string `json:"port_id"`
	}
	_ = json.NewDecoder(r.Body).Decode(&asked)
	p := f.find("ports", func(p object) bool { return p["id"] == asked.PortID && p["device_id"] == router })
	switch {
	case p == nil:
		refuse(w, 404, "Router %s has no interface %s", router, asked.PortID)
	case f.find("floatingips", has("router_id", router)) != nil:
		refuse(w, 409, "Router interface %s cannot be deleted, as it is required by one or more floating IPs.", asked.PortID)
	default:
		f.drop("ports", has("id", asked.PortID))
		answer(w, 200, object{"id": router, "port_id": asked.PortID})
	}
}

// bed makes what stacks/openstack.go makes for a bed, with ids that begin so. Everything bears the mark.
func (f *fakeOpenStack) bed(mark map[string]string, id string, nodes int, keep bool) {
	text, image := Description(mark), Words(mark)
	if keep {
		image = append(image, TagKeep+"=true")
	}
	f.add("networks", object{"id": id + "-network", "name": "n", "description": text})
	f.add("subnets", object{"id": id + "-subnet", "network_id": id + "-network", "description": text})
	f.add("routers", object{"id": id + "-router", "description": text})
	f.add("security-groups", object{"id": id + "-group", "description": text})
	port := func(name, owner, device string, groups []string, text string) {
		f.add("ports", object{"id": id + name, "network_id": id + "-network", "subnet": id + "-subnet", "device_owner": owner, "device_id": device, "security_groups": groups, "description": text})
	}
	port("-dhcp", "network:dhcp", "dhcp", nil, "")
	port("-way", "network:router_interface", id+"-router", nil, "")
	f.add("images", object{"id": id + "-image", "name": "bedfellow-" + id, "status": "active", "visibility": "private", "tags": append(image, TagDigest+"=sha256-"+id)})
	f.add("os-keypairs", object{"id": Label(mark[TagBed], mark[TagID])})
	f.add("os-server-groups", object{"id": id + "-spread", "name": Label(mark[TagBed], mark[TagID])})
	f.add("floatingips", object{"id": id + "-floating", "router_id": id + "-router", "description": text})
	for i := range nodes {
		server := fmt.Sprintf("%s-server%d", id, i)
		tags := maps.Clone(mark)
		tags[TagNode] = fmt.Sprintf("%s-%02d", mark[TagBed], i+1)
		addresses := []object{{"addr": fmt.Sprintf("10.106.0.%d", i+10), "OS-EXT-IPS:type": "fixed"}}
		if i == 0 {
			addresses = append(addresses, object{"addr": "203.0.113.7", "OS-EXT-IPS:type": "floating"})
		}
		port(fmt.Sprintf("-port%d", i), "compute:nova", server, []string{id + "-group"}, text)
		f.add("servers", object{"id": server, "name": tags[TagNode], "status": "ACTIVE", "metadata": tags, "addresses": object{"n": addresses}, "image": "",
			"os-extended-volumes:volumes_attached": []object{{"id": server + "-volume"}}})
		f.add("volumes", object{"id": server + "-volume", "server": server, "attachments": []object{{"server_id": server}}, "volume_image_metadata": object{"image_id": id + "-image"}})
	}
}
