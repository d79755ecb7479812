// Package enginetest is a fake of an oVirt engine: a real HTTPS server with the paths that driver ovirt uses, in the engine's XML, with its
// asynchronous states and its refusals. It makes no virtual machine; what stands in for one is a Backing.
package enginetest

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Latency is how long the engine takes for what it does after it has answered.
type Latency struct {
	MakeVM, MakeDisk, MakeTemplate, Launch, Stop, Remove, Transfer time.Duration
	Answer                                                         time.Duration // before every answer
}

// Usual is what an engine with a few hosts takes.
func Usual() Latency {
	return Latency{MakeVM: 8 * time.Second, MakeDisk: 3 * time.Second, MakeTemplate: 10 * time.Second, Launch: 4 * time.Second, Stop: 3 * time.Second, Remove: 2 * time.Second, Transfer: 4 * time.Second, Answer: 50 * time.Millisecond}
}

// Guest is what a VM is to be, as its cloud-init data says.
type Guest struct {
	Name, User, AuthorizedKey string
	HostKey, HostPublicKey    string
	CPUs                      int
	Memory                    int64  // bytes
	Address                   string // one that was given, or empty
	ID                        string // the VM's
}

// Backing is what stands in for virtual machines.
type Backing interface {
	// Start has a guest run with an sshd, and returns its address. A guest that was stopped runs again with what it had.
	Start(ctx context.Context, g Guest) (address string, err error)
	Stop(id string)
	// Remove forgets a guest that is stopped.
	Remove(id string)
}

// Fault is something that goes wrong with calls of the API.
type Fault struct {
	Call string // such as POST /vms/*/start; * stands for what is between two slashes
	Skip int    // so many go well before
	// Times is how often it goes wrong; 0 is always.
	Times int
	// Status and Detail are what the call is refused with; nothing is done then.
	Status int
	Detail string
	// Break closes the connection before anything is done, Lose after all is.
	Break, Lose bool
}

// Engine is the fake. Its methods are safe for concurrent use.
type Engine struct {
	URL         string // of the API
	Username    string
	Password    string
	CA          []byte // PEM
	Fingerprint string // of the CA

	server  *httptest.Server
	latency Latency
	backing Backing

	mu        sync.Mutex
	shift     time.Duration // of the clock
	due       []effect
	faults    []*Fault
	tokens    map[string]int // how often each can be used yet
	uses      int            // of a new one
	vms       []*vm
	disks     []*disk
	templates []*template
	tags      []*tag
	groups    []*group
	transfers []*transfer
	calls     map[string]int // by method and path, ids left out
	storage   int64          // bytes; 0 is without end
	quota     int            // of VMs; 0 is without end
	launches  map[string]bool
	sent      int64 // bytes of images
	plain     bool  // the user is no administrator
	pending   int   // VMs on their way up at once, at most, since that was asked
}

type effect struct {
	at time.Time
	do func()
}

type (
	vm struct {
		id, name, description, comment, status, address string
		cluster, template                               string
		sockets, cores                                  int
		memory, guaranteed                              int64
		script                                          string
		nics                                            []nic
		disks                                           []*disk
		tags                                            []string
		stopped                                         bool // once
		others                                          bool // who is no administrator is not shown it
	}
	nic  struct{ id, name, profile string }
	disk struct {
		id, name, description, status string
		size                          int64
		template                      string // that it is of
		content                       []byte // of an uploaded one
		written                       []span
	}
	span     struct{ start, length int64 }
	template struct {
		id, name, description, status string
		size                          int64
		version                       int
		disk                          *disk // a copy, with the name and the description of what it was made of
	}
	tag   struct{ id, name, description string }
	group struct {
		id, name, description, cluster string
		vms                            []string
	}
	transfer struct{ id, disk, phase, ticket string }
)

// Ids of what the engine has from the beginning.
const (
	DataCenter    = "11111111-0000-4000-8000-000000000001"
	Cluster       = "22222222-0000-4000-8000-000000000001"
	SpareCluster  = "22222222-0000-4000-8000-000000000002"
	StorageDomain = "33333333-0000-4000-8000-000000000001"
	Network       = "44444444-0000-4000-8000-000000000001"
	VnicProfile   = "55555555-0000-4000-8000-000000000001"
)

func newID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	return fmt.Sprintf("%x-%x-4%x-8%x-%x", b[:4], b[4:6], b[6:8][:1], b[8:10][:1], b[10:])
}

// Start starts an engine on an address of this host, or on a free port of the loopback interface when that is empty.
func Start(address string, latency Latency, backing Backing) (*Engine, error) {
	e := &Engine{Username: "admin@internal", Password: "fake-" + rand.Text(), latency: latency, backing: backing, tokens: map[string]int{}, uses: math.MaxInt, calls: map[string]int{}, launches: map[string]bool{}}
	return e, e.listen(address)
}

// Close ends the engine, and every guest.
func (e *Engine) Close() {
	e.server.Close()
	for _, v := range e.vms {
		e.backing.Stop(v.id)
		e.backing.Remove(v.id)
	}
}

func (e *Engine) now() time.Time { return time.Now().Add(e.shift) }

// after has something done when so much time has gone by. The caller holds the mutex, as what is done does.
func (e *Engine) after(d time.Duration, do func()) {
	e.due = append(e.due, effect{e.now().Add(d), do})
}

// settle does what is due. The caller holds the mutex.
func (e *Engine) settle() {
	for {
		now := e.now()
		i := slices.IndexFunc(e.due, func(x effect) bool { return !x.at.After(now) })
		if i < 0 {
			return
		}
		x := e.due[i]
		e.due = slices.Delete(e.due, i, i+1)
		x.do()
	}
}

// Advance moves the engine's clock.
func (e *Engine) Advance(d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.shift += d
	e.settle()
}

// Inject has calls go wrong.
func (e *Engine) Inject(faults ...Fault) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, f := range faults {
		e.faults = append(e.faults, &f)
	}
}

// Demote takes every role of an administrator from the user.
func (e *Engine) Demote() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.plain = true
}

// ExpireTokens has every token that was given out expire.
func (e *Engine) ExpireTokens() {
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.tokens)
}

// TokensLast has every token from now on expire after so many calls.
func (e *Engine) TokensLast(calls int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.uses = calls
	clear(e.tokens)
}

// Restart is the engine's own: connections break, tokens are no more, and transfers are paused.
func (e *Engine) Restart() {
	e.ExpireTokens()
	e.mu.Lock()
	for _, t := range e.transfers {
		if t.phase == "transferring" {
			t.phase = "paused_system"
		}
	}
	e.mu.Unlock()
	e.server.CloseClientConnections()
}

// Limit sets how many bytes of disks and how many VMs there can be; 0 is without end.
func (e *Engine) Limit(storage int64, vms int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.storage, e.quota = storage, vms
}

// Hang has a VM's next launch never end.
func (e *Engine) Hang(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.launches[name] = true
}

// Census lists what the engine has that somebody made.
func (e *Engine) Census() (out []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.settle()
	for _, v := range e.vms {
		out = append(out, "vm "+v.name)
	}
	for _, d := range e.disks {
		if d.template == "" { // others are told of as that
			out = append(out, "disk "+d.name)
		}
	}
	for _, t := range e.templates {
		out = append(out, "template "+t.name)
	}
	for _, t := range e.tags {
		out = append(out, "tag "+t.name)
	}
	for _, g := range e.groups {
		out = append(out, "affinity group "+g.name)
	}
	for _, t := range e.transfers {
		if !strings.HasPrefix(t.phase, "finished") && t.phase != "cancelled" {
			out = append(out, "transfer of "+t.disk)
		}
	}
	slices.Sort(out)
	return out
}

// Calls are how often each call was made, such as GET /vms/*.
func (e *Engine) Calls() map[string]int {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := map[string]int{}
	for k, n := range e.calls {
		out[k] = n
	}
	return out
}

func (e *Engine) erase(v *vm) {
	e.backing.Remove(v.id)
	e.vms = slices.DeleteFunc(e.vms, func(o *vm) bool { return o == v })
	e.disks = slices.DeleteFunc(e.disks, func(d *disk) bool { return slices.Contains(v.disks, d) })
	for _, g := range e.groups {
		g.vms = slices.DeleteFunc(g.vms, func(id string) bool { return id == v.id })
	}
}

var ids = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{20,}`)

// fault is what goes wrong with a call now, if anything.
func (e *Engine) fault(call string) *Fault {
	for i, f := range e.faults {
		if ok, _ := path.Match(f.Call, call); !ok {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		hit := *f
		if f.Times == 1 {
			e.faults = slices.Delete(e.faults, i, i+1)
		} else if f.Times > 1 {
			f.Times--
		}
		return &hit
	}
	return nil
}

// answer is what a call yields: XML and a status, or a refusal.
type answer struct {
	status int
	body   string
}

func ok(body string) answer       { return answer{http.StatusOK, body} }
func accepted(body string) answer { return answer{http.StatusAccepted, body} }

func refused(status int, detail string) answer {
	return answer{status, "<fault><detail>[" + escape(detail) + "]</detail><reason>Operation Failed</reason></fault>"}
}

func missing() answer {
	return answer{http.StatusNotFound, "<fault><detail>Entity not found: null</detail><reason>Operation Failed</reason></fault>"}
}

const locked = "Related operation is currently in progress. Please try again later."

const insufficient = "query execution failed due to insufficient permissions."

// adminsOnly are calls whose queries the engine has for administrators (its QueryType).
var adminsOnly = regexp.MustCompile(`^[A-Z]+ (/tags|/vms/\*/tags|/clusters/\*/affinitygroups)|^GET /imagetransfers$`)

// filtered says that only what the user has a right to is asked for.
func filtered(r *http.Request) bool { return r.Header.Get("Filter") == "true" }

// api is a handler of the API's, with the mutex held.
func (e *Engine) api(do func(e *Engine, r *http.Request, body []byte) answer) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		time.Sleep(e.latency.Answer)
		call := r.Method + " " + ids.ReplaceAllString(strings.TrimPrefix(r.URL.Path, apiPath), "*")
		e.mu.Lock()
		e.settle()
		e.calls[call]++
		token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		if e.tokens[token] == 0 {
			e.mu.Unlock()
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		e.tokens[token]--
		f := e.fault(call)
		var a answer
		switch {
		case f != nil && f.Break:
			e.mu.Unlock()
			panic(http.ErrAbortHandler)
		case f != nil && !f.Lose:
			a = refused(f.Status, f.Detail)
			if f.Detail == "" { // the web server's before it
				a.body = "<html><body>Service Unavailable</body></html>"
			}
		case e.plain && !filtered(r): // the engine does what it is asked for, and then may not show it
			if r.Method != http.MethodGet {
				do(e, r, body)
			}
			a = refused(http.StatusBadRequest, insufficient)
		case e.plain && adminsOnly.MatchString(call):
			a = refused(http.StatusForbidden, "User is not authorized to perform this action.")
			if r.Method == http.MethodGet {
				a = refused(http.StatusBadRequest, insufficient)
			}
		default:
			a = do(e, r, body)
		}
		e.settle()
		e.mu.Unlock()
		if f != nil && f.Lose {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Content-Type", "application/xml;charset=UTF-8")
		if id := r.Header.Get("Correlation-Id"); id != "" {
			w.Header().Set("Correlation-Id", id)
		}
		w.WriteHeader(a.status)
		_, _ = io.WriteString(w, a.body)
	}
}
