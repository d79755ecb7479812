package ovirt

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	ovirtsdk "github.com/ovirt/go-ovirt"
)

// client speaks to an engine's REST API. Of go-ovirt it has the types and what reads and writes their XML; that one's connections know no
// contexts, never renew a token, and make a TLS connection for each call. It is safe for concurrent use.
type client struct {
	settings Settings
	http     *http.Client
	timing   timing
	log      *slog.Logger
	requests atomic.Int64 // made to the API in all, the tokens' left out
	// filtered has the engine show what the user has a right to. It answers others than administrators in no other way, and administrators all.
	filtered atomic.Bool

	mu    sync.Mutex
	token string
}

// timing is how long things may take; tests have less.
type timing struct {
	request time.Duration // one request
	retry   time.Duration // what a call may take with all its retries
	pause   time.Duration // before the first retry; it doubles up to pauseMost, and half of each is left to chance
	most    time.Duration
	poll    time.Duration // between looks at what the engine is doing, to begin with
	settle  time.Duration // what the engine may take to make a VM, a disk, a template
	boot    time.Duration // from a VM's start to its sshd
}

func usualTiming() timing {
	return timing{request: time.Minute, retry: 3 * time.Minute, pause: time.Second, most: 15 * time.Second, poll: 2 * time.Second, settle: 30 * time.Minute, boot: 15 * time.Minute}
}

// Fault is what the engine says of a request that it refuses.
type Fault struct {
	Call           string // POST /vms
	Status         int
	Reason, Detail string
	Correlation    string // under which the engine's log and events have it
}

func (f *Fault) Error() string {
	said := strings.TrimSpace(f.Reason + ": " + f.Detail)
	if f.Reason == "" && f.Detail == "" {
		said = http.StatusText(f.Status)
	}
	return fmt.Sprintf("the engine refuses %s: %d: %s (correlation id %s)", f.Call, f.Status, strings.Trim(said, ": "), f.Correlation)
}

// busy says that the engine did nothing because something else is under way, by the texts of its AppErrors.properties.
func (f *Fault) busy() bool {
	if f.Status != http.StatusConflict && f.Status != http.StatusBadRequest {
		return false
	}
	for _, text := range []string{"elated operation is currently in progress", "is locked", "are locked", "Image Locked", "being locked", "Please try again", "is in progress"} {
		if strings.Contains(f.Detail, text) || strings.Contains(f.Reason, text) {
			return true
		}
	}
	return false
}

// adminsOnly says that the engine answers a question to administrators only, or, unfiltered, any question.
func adminsOnly(err error) bool {
	var f *Fault
	return errors.As(err, &f) && strings.Contains(f.Detail, "nsufficient permissions")
}

// notFound says that there is no such thing in the engine.
func notFound(err error) bool {
	var f *Fault
	return errors.As(err, &f) && (f.Status == http.StatusNotFound || strings.Contains(f.Detail, "Entity not found"))
}

// uncertainError is a request that may have been done: the answer did not come.
type uncertainError struct{ err error }

func (e *uncertainError) Error() string { return e.err.Error() }
func (e *uncertainError) Unwrap() error { return e.err }

// connect makes a client, and gets the CA's certificate where it is known by its fingerprint only.
func connect(ctx context.Context, s Settings, t timing, log *slog.Logger) (*client, error) {
	c := &client{settings: s, timing: t, log: log, token: s.Token}
	config := &tls.Config{InsecureSkipVerify: s.Insecure}
	var certificates []byte
	var err error
	switch {
	case s.CAFile != "":
		if certificates, err = os.ReadFile(s.CAFile); err != nil {
			return nil, fmt.Errorf("the engine's CA: %w", err)
		}
	case s.Fingerprint != "":
		if certificates, err = c.fetchCA(ctx); err != nil {
			return nil, err
		}
	}
	if len(certificates) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(certificates) {
			return nil, fmt.Errorf("the engine's CA: %s has no certificate in PEM form", s.CAFile)
		}
	}
	c.http = &http.Client{Transport: &http.Transport{TLSClientConfig: config, MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute, Proxy: http.ProxyFromEnvironment}}
	return c, nil
}

// fetchCA gets the CA's certificate from the engine, by whomever it says it is, and holds it against the fingerprint.
func (c *client) fetchCA(ctx context.Context) ([]byte, error) {
	anybody := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true, Proxy: http.ProxyFromEnvironment}}
	ctx, cancel := context.WithTimeout(ctx, c.timing.request)
	defer cancel()
	at := c.root() + "/services/pki-resource?resource=ca-certificate&format=X509-PEM-CA"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	resp, err := anybody.Do(req)
	if err != nil {
		return nil, fmt.Errorf("get the engine's CA: %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("get the engine's CA: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("get the engine's CA: %s answers with no certificate; give the file with ovirt.caFile", at)
	}
	if have := sha256.Sum256(block.Bytes); hex.EncodeToString(have[:]) != c.settings.Fingerprint {
		return nil, fmt.Errorf("the engine at %s shows a CA of fingerprint %x, and ovirt.fingerprint is %s: it is another engine, or somebody is in between", c.settings.URL, have, c.settings.Fingerprint)
	}
	return pem.EncodeToMemory(block), nil
}

// root is the engine's own address, which its API's is below.
func (c *client) root() string {
	return strings.TrimSuffix(strings.TrimSuffix(c.settings.URL, "/"), "/api")
}

// authorization is the header of the token there is, and gets one when there is none. old, if not empty, has expired.
func (c *client) authorization(ctx context.Context, old string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.token != "" && c.token != old {
		return c.token, nil
	}
	if c.settings.Password == "" {
		return "", &refusedError{fmt.Errorf("the engine at %s does not take the token, which is from %s: it has expired, or is another engine's", c.settings.URL, c.settings.from["token"])}
	}
	form := url.Values{"grant_type": {"password"}, "scope": {"ovirt-app-api"}, "username": {c.settings.Username}, "password": {c.settings.Password}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.root()+"/sso/oauth/token", strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return "", &unsentError{err}
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", &unsentError{err}
	}
	var said struct {
		Token string `json:"access_token"`
		Error string `json:"error"`
		Code  string `json:"error_code"`
	}
	if err := json.Unmarshal(data, &said); err != nil || said.Token == "" {
		if resp.StatusCode >= http.StatusInternalServerError {
			return "", &unsentError{fmt.Errorf("the engine gives no token: %s", resp.Status)}
		}
		return "", &refusedError{fmt.Errorf("the engine at %s does not let %s in: %s %s; the name is from %s, and the password from %s", c.settings.URL, c.settings.Username, said.Code, said.Error, c.settings.from["username"], c.settings.from["password"])}
	}
	c.token = said.Token
	return c.token, nil
}

// unsentError is a request that was not made, and can be made again.
type unsentError struct{ err error }

func (e *unsentError) Error() string { return e.err.Error() }
func (e *unsentError) Unwrap() error { return e.err }

// refusedError is that of an engine that lets nobody in by what it was given.
type refusedError struct{ err error }

func (e *refusedError) Error() string { return e.err.Error() }
func (e *refusedError) Unwrap() error { return e.err }

// call makes a request of the API and returns the answer. What was surely not done is tried again for a while, with jitter; what may have been
// done is too if doing it twice is doing it once, and is an *uncertainError if not.
func (c *client) call(ctx context.Context, method, path string, query url.Values, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.timing.retry, fmt.Errorf("not within %s", c.timing.retry))
	defer cancel()
	renewed := false
	var last error
	for pause := c.timing.pause; ; pause = min(2*pause, c.timing.most) {
		filtered := c.filtered.Load()
		token, answer, err := c.once(ctx, method, path, query, body)
		if err == nil {
			return answer, nil
		}
		if ctx.Err() != nil {
			return nil, errors.Join(last, c.end(ctx, err))
		}
		var fault *Fault
		var unsent *unsentError
		isFault := errors.As(err, &fault)
		switch {
		case isFault && fault.Status == http.StatusUnauthorized && !renewed:
			_, errToken := c.authorization(ctx, token)
			if errors.As(errToken, new(*refusedError)) {
				return nil, errToken
			}
			if renewed = errToken == nil; renewed {
				continue
			}
		case adminsOnly(err) && !filtered && method == http.MethodGet: // whatever is done, something is asked before
			c.filtered.Store(true)
			continue
		case errors.As(err, new(*refusedError)), errors.As(err, new(*tls.CertificateVerificationError)):
			return nil, err
		case isFault && fault.busy(), errors.As(err, &unsent):
		case isFault && fault.Status != http.StatusBadGateway && fault.Status != http.StatusServiceUnavailable && fault.Status != http.StatusGatewayTimeout:
			return nil, err
		case method == http.MethodPost:
			return nil, &uncertainError{err}
		}
		last = err
		c.log.Debug("engine: again", "call", method+" "+path, "in", pause, "error", err)
		if !sleep(ctx, pause/2+mrand.N(pause/2+1)) {
			return nil, errors.Join(last, context.Cause(ctx))
		}
	}
}

// end is what a request's error is once the context has ended: a POST on its way may have been done.
func (c *client) end(ctx context.Context, err error) error {
	var fault *Fault
	var unsent *unsentError
	if errors.As(err, &fault) || errors.As(err, &unsent) {
		return context.Cause(ctx)
	}
	return &uncertainError{fmt.Errorf("%w: %w", context.Cause(ctx), err)}
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// once makes a request once, and returns the token that it was made with.
func (c *client) once(ctx context.Context, method, path string, query url.Values, body []byte) (token string, answer []byte, err error) {
	if token, err = c.authorization(ctx, ""); err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timing.request)
	defer cancel()
	at := strings.TrimSuffix(c.settings.URL, "/") + path
	if len(query) > 0 {
		at += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, at, bytes.NewReader(body))
	if err != nil {
		return "", nil, err
	}
	correlation := "bedfellow-" + strings.ToLower(rand.Text()[:10])
	for key, value := range map[string]string{
		"Authorization": "Bearer " + token, "Accept": "application/xml", "Content-Type": "application/xml", "Version": "4", "Correlation-Id": correlation,
	} {
		req.Header.Set(key, value)
	}
	if c.filtered.Load() {
		req.Header.Set("Filter", "true")
	}
	begin := time.Now()
	c.requests.Add(1)
	resp, err := c.http.Do(req)
	if err != nil {
		c.log.Debug("engine", "call", method+" "+path, "took", time.Since(begin), "error", err)
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			err = &unsentError{err}
		}
		return token, nil, fmt.Errorf("the engine at %s does not answer %s %s: %w", c.settings.URL, method, path, err)
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	c.log.Debug("engine", "call", method+" "+path, "status", resp.StatusCode, "took", time.Since(begin), "correlation", correlation)
	if resp.StatusCode >= http.StatusBadRequest {
		return token, nil, readFault(&Fault{Call: method + " " + path, Status: resp.StatusCode, Correlation: correlation}, answer)
	}
	if err != nil {
		return token, nil, fmt.Errorf("the engine's answer to %s %s breaks off: %w", method, path, err)
	}
	return token, answer, nil
}

// readFault reads what an error's body says, which is a fault, an action with one, or a web server's page.
func readFault(f *Fault, body []byte) *Fault {
	if !bytes.Contains(body, []byte("<fault>")) {
		return f
	}
	fault, _ := ovirtsdk.XMLFaultReadOne(ovirtsdk.NewXMLReader(body), nil, "")
	if fault == nil {
		if action, err := ovirtsdk.XMLActionReadOne(ovirtsdk.NewXMLReader(body), nil, ""); err == nil && action != nil {
			fault, _ = action.Fault()
		}
	}
	if fault != nil {
		f.Reason, _ = fault.Reason()
		f.Detail, _ = fault.Detail()
	}
	return f
}

// one and many read an answer by go-ovirt's readers.
func one[T any](data []byte, err error, read func(*ovirtsdk.XMLReader, *xml.StartElement, string) (*T, error)) (*T, error) {
	if err != nil {
		return nil, err
	}
	object, err := read(ovirtsdk.NewXMLReader(data), nil, "")
	if err == nil && object == nil {
		err = errors.New("nothing where an object was expected")
	}
	if err != nil {
		return nil, fmt.Errorf("the engine's answer cannot be read: %w", err)
	}
	return object, nil
}

func many[S any](data []byte, err error, read func(*ovirtsdk.XMLReader, *xml.StartElement) (*S, error)) (*S, error) {
	if err != nil {
		return nil, err
	}
	list, err := read(ovirtsdk.NewXMLReader(data), nil)
	if err == nil && list == nil {
		err = errors.New("nothing where a list was expected")
	}
	if err != nil {
		return nil, fmt.Errorf("the engine's answer cannot be read: %w", err)
	}
	return list, nil
}

// written is an object as XML, by go-ovirt's writers.
func written[T any](object *T, write func(*ovirtsdk.XMLWriter, *T, string) error) ([]byte, error) {
	var b bytes.Buffer
	w := ovirtsdk.NewXMLWriter(&b)
	if err := write(w, object, ""); err != nil {
		return nil, err
	}
	err := w.Flush()
	return b.Bytes(), err
}

// search quotes a value of the engine's search language, which knows no escapes.
func search(field, value string) url.Values {
	return url.Values{"search": {field + `="` + strings.ReplaceAll(value, `"`, "") + `"`}}
}
