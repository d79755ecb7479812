package ovirt

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/bedfellow/bedfellow/pkg/bed"
)

// Settings are what the driver is told of an engine and of what machines there are to be like.
type Settings struct {
	URL                string // of the API: https://engine.example.org/ovirt-engine/api
	Username, Password string // admin@internal
	Token              string // instead of those; it is not renewed unless they are given too
	CAFile             string // in PEM form
	Fingerprint        string // SHA-256 of the CA's certificate, hex digits, instead of the file
	Insecure           bool   // nobody's certificate is checked
	// By name or id. An empty one is the only one there is.
	DataCenter, Cluster, StorageDomain, VnicProfile string
	// Template is one that is there already, by id, by name, which is its newest version, or as NAME:NUMBER; empty makes one of the bed's image.
	Template string
	// Addresses are the nodes', in order, with their prefix's length; none leaves them to DHCP.
	Addresses   []netip.Prefix
	Gateway     netip.Addr // of those; may be invalid
	Spread      bool       // over the cluster's hosts, by an affinity group, as far as there are hosts
	Sockets     int        // a node's CPUs are on so many
	Guaranteed  int        // percent of its memory that a node has always
	Concurrency int        // nodes made at once
	// from says where each value that can come of several places is from, for errors.
	from map[string]string
}

const defaultConcurrency = 16

// ConnectionEnv has, in JSON, what a bed's configuration says of its engine, for the processes that `bed` starts; with what holds for a call alone.
const ConnectionEnv = "BEDFELLOW_OVIRT"

// Split parts what a bed's keys say of the engine and of who one is there from the rest. It is of the moment, and so is in no state: an engine
// that has moved since would keep a bed from being removed.
func Split(values map[string]string) (connection, rest map[string]string) {
	connection, rest = map[string]string{}, map[string]string{}
	for key, v := range values {
		to := rest
		if slices.Contains([]string{"url", "username", "password", "token", "caFile", "fingerprint", "insecure"}, key) {
			to = connection
		}
		to[key] = v
	}
	return connection, rest
}

// pluginEnv has, in JSON, what the stack's configuration has under the package's name, secrets decrypted. Pulumi starts a plugin with it, whatever
// the command: so plain `pulumi` has the plugin know the engine, without a state that does.
const pluginEnv = "PULUMI_CONFIG"

// variables are those of oVirt's own tools.
var variables = map[string]string{"url": "OVIRT_URL", "username": "OVIRT_USERNAME", "password": "OVIRT_PASSWORD", "token": "OVIRT_TOKEN", "caFile": "OVIRT_CAFILE"}

// handedOn is what the stack's configuration says of an engine, as this process was started with it.
func handedOn() map[string]string {
	said := map[string]string{}
	if ours := os.Getenv(ConnectionEnv); ours != "" {
		_ = json.Unmarshal([]byte(ours), &said)
		return said
	}
	var all map[string]string
	_ = json.Unmarshal([]byte(os.Getenv(pluginEnv)), &all) // a program's has other keys, and is among its values
	for key, v := range all {
		if name, is := strings.CutPrefix(key, "ovirt."); is {
			said[name] = v
		}
	}
	said, _ = Split(said)
	return said
}

// given is what is said of an engine, by key: by the variables, and on top of that by the stack's configuration, as it was handed on or is
// among values. from says of each which.
func given(values map[string]string) (all, from map[string]string) {
	all, from = map[string]string{}, map[string]string{}
	for key, name := range variables {
		if v := os.Getenv(name); v != "" {
			all[key], from[key] = v, name
		}
	}
	for _, top := range []map[string]string{handedOn(), values} {
		for _, of := range [][]string{{"password", "token"}, {"caFile", "fingerprint"}} { // who gives one gives all: another's token would go before a password
			if slices.ContainsFunc(of, func(key string) bool { return top[key] != "" }) {
				for _, key := range of {
					delete(all, key)
				}
			}
		}
		for key, v := range top {
			if v == "" {
				continue
			}
			all[key], from[key] = v, "ovirt."+key+" of the configuration"
			if name := variables[key]; os.Getenv(name) != "" {
				from[key] += ", which goes before " + name + " (-c ovirt." + key + "= takes it out)"
			}
		}
	}
	return all, from
}

var fingerprint = regexp.MustCompile(`^[0-9a-f]{64}$`)

// ReadSettings takes the values of a bed's keys ovirt.…, without that, and for those of an engine that are not among them what the process was told
// besides. All problems are in the result at once.
func ReadSettings(values map[string]string) (Settings, bed.Problems) {
	var problems bed.Problems
	problem := func(key, value, reason, remedy string) {
		problems = append(problems, bed.Problem{Key: "ovirt." + key, Value: value, Reason: reason, Remedy: remedy})
	}
	all, from := given(values)
	get := func(key string) string { return all[key] }
	number := func(key string, fallback, least, most int) int {
		v := get(key)
		if v == "" {
			return fallback
		}
		n, err := strconv.Atoi(v)
		if err != nil || n < least || n > most {
			problem(key, v, fmt.Sprintf("must be a whole number from %d to %d", least, most), "write such a number, or leave it out for "+strconv.Itoa(fallback))
		}
		return n
	}
	truth := func(key string, fallback bool) bool {
		v := get(key)
		if v == "" {
			return fallback
		}
		if v != "true" && v != "false" {
			problem(key, v, "must be true or false", "write one of them")
		}
		return v == "true"
	}
	s := Settings{
		URL: get("url"), Username: get("username"), Password: get("password"), Token: get("token"), CAFile: get("caFile"),
		Fingerprint: strings.ToLower(strings.ReplaceAll(get("fingerprint"), ":", "")), Insecure: truth("insecure", false),
		DataCenter: get("dataCenter"), Cluster: get("cluster"), StorageDomain: get("storageDomain"), VnicProfile: get("vnicProfile"), Template: get("template"),
		Spread: truth("spread", true), Sockets: number("sockets", 1, 1, 64), Guaranteed: number("guaranteed", 100, 0, 100), Concurrency: number("concurrency", defaultConcurrency, 1, 256),
		from: from,
	}
	at, err := url.Parse(s.URL)
	switch {
	case s.URL == "":
		problem("url", "", "is not given, and OVIRT_URL is not set: there is no engine to talk to", "write -c ovirt.url=https://ENGINE/ovirt-engine/api")
	case err != nil || at.Scheme != "https" || at.Host == "":
		problem("url", s.URL, "is not an engine's address", "write https://ENGINE/ovirt-engine/api")
	case !strings.HasSuffix(strings.TrimSuffix(at.Path, "/"), "/api"):
		problem("url", s.URL, "is not that of an engine's API", "write https://"+at.Host+"/ovirt-engine/api")
	}
	if s.Token == "" && (s.Username == "" || s.Password == "") {
		problem("username", s.Username, "and ovirt.password are to be given both, or ovirt.token", "set OVIRT_USERNAME, as in admin@internal, and OVIRT_PASSWORD, or those keys with -c")
	}
	if s.Fingerprint != "" && !fingerprint.MatchString(s.Fingerprint) {
		problem("fingerprint", get("fingerprint"), "is not a SHA-256 fingerprint, which has 64 hexadecimal digits", "see `openssl x509 -in ca.pem -noout -fingerprint -sha256`")
	}
	if s.Insecure && (s.CAFile != "" || s.Fingerprint != "") {
		problem("insecure", "true", "checks nobody's certificate, and a CA is given", "leave one of them out")
	}
	s.Addresses, s.Gateway = addresses(get("addresses"), get("gateway"), problem)
	return s, problems
}

// addresses reads FIRST-LAST/LENGTH, as in 10.1.2.11-10.1.2.17/24.
func addresses(text, gateway string, problem func(key, value, reason, remedy string)) (list []netip.Prefix, via netip.Addr) {
	if text == "" || text == "dhcp" {
		if gateway != "" {
			problem("gateway", gateway, "is for addresses that are given", "give ovirt.addresses too, or leave it to DHCP")
		}
		return nil, via
	}
	span, length, _ := strings.Cut(text, "/")
	from, to, _ := strings.Cut(span, "-")
	first, err := netip.ParseAddr(from)
	last, errLast := netip.ParseAddr(to)
	bits, errBits := strconv.Atoi(length)
	if err != nil || errLast != nil || errBits != nil || !first.Is4() || !last.Is4() || last.Less(first) || bits < 8 || bits > 30 || !netip.PrefixFrom(first, bits).Masked().Contains(last) {
		problem("addresses", text, "is not a row of addresses of one network", "write FIRST-LAST/LENGTH, such as 10.1.2.11-10.1.2.17/24, or dhcp")
		return nil, via
	}
	for a := first; !last.Less(a); a = a.Next() {
		list = append(list, netip.PrefixFrom(a, bits))
		if len(list) == bed.MaxNodes {
			break
		}
	}
	if gateway != "" {
		if via, err = netip.ParseAddr(gateway); err != nil || !list[0].Masked().Contains(via) {
			problem("gateway", gateway, "is not an address of the network of ovirt.addresses", "write one of "+list[0].Masked().String())
		}
	}
	return list, via
}
