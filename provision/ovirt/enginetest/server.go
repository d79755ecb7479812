package enginetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"time"
)

const apiPath = "/ovirt-engine/api"

// listen starts the server, with a CA of its own as every engine has.
func (e *Engine) listen(address string) error {
	if address == "" {
		address = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	certificate, err := e.certify(l.Addr().(*net.TCPAddr).IP)
	if err != nil {
		return err
	}
	e.server = &httptest.Server{Listener: l, Config: &http.Server{Handler: e.handler(), ErrorLog: log.New(io.Discard, "", 0)}, TLS: &tls.Config{Certificates: []tls.Certificate{certificate}}}
	e.server.StartTLS()
	e.URL = fmt.Sprintf("https://%s%s", l.Addr(), apiPath)
	return nil
}

// certify makes the CA and the server's certificate.
func (e *Engine) certify(at net.IP) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "fake engine's CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	own := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "fake engine"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		IPAddresses: []net.IP{at}, DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	ownDER, err := x509.CreateCertificate(rand.Reader, own, ca, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	e.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
	e.Fingerprint = fmt.Sprintf("%x", sha256.Sum256(caDER))
	return tls.Certificate{Certificate: [][]byte{ownDER}, PrivateKey: key}, nil
}

func (e *Engine) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /ovirt-engine/sso/oauth/token", e.token)
	mux.HandleFunc("GET /ovirt-engine/services/pki-resource", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(e.CA) })
	mux.HandleFunc("/images/{ticket}", e.image)
	mux.HandleFunc("/images/{ticket}/{what}", e.image)
	for pattern, do := range map[string]func(*Engine, *http.Request, []byte) answer{
		"GET /{$}":                                         (*Engine).about,
		"GET /datacenters":                                 (*Engine).getDataCenters,
		"GET /datacenters/{id}/clusters":                   (*Engine).getClusters,
		"GET /datacenters/{id}/storagedomains":             (*Engine).getStorageDomains,
		"GET /datacenters/{id}/networks":                   (*Engine).getNetworks,
		"GET /vnicprofiles":                                (*Engine).getVnicProfiles,
		"GET /vms":                                         (*Engine).getVMs,
		"POST /vms":                                        (*Engine).addVM,
		"GET /vms/{id}":                                    (*Engine).getVM,
		"PUT /vms/{id}":                                    (*Engine).putVM,
		"DELETE /vms/{id}":                                 (*Engine).deleteVM,
		"POST /vms/{id}/start":                             (*Engine).startVM,
		"POST /vms/{id}/stop":                              (*Engine).stopVM,
		"GET /vms/{id}/nics":                               (*Engine).getNICs,
		"POST /vms/{id}/nics":                              (*Engine).addNIC,
		"DELETE /vms/{id}/nics/{nic}":                      (*Engine).deleteNIC,
		"GET /clusters":                                    (*Engine).getClusters,
		"GET /vms/{id}/tags":                               (*Engine).getVMTags,
		"POST /vms/{id}/tags":                              (*Engine).tagVM,
		"GET /vms/{id}/diskattachments":                    (*Engine).getAttachments,
		"PUT /vms/{id}/diskattachments/{disk}":             (*Engine).putAttachment,
		"GET /disks":                                       (*Engine).getDisks,
		"POST /disks":                                      (*Engine).addDisk,
		"GET /disks/{id}":                                  (*Engine).getDisk,
		"DELETE /disks/{id}":                               (*Engine).deleteDisk,
		"GET /templates":                                   (*Engine).getTemplates,
		"POST /templates":                                  (*Engine).addTemplate,
		"GET /templates/{id}/diskattachments":              (*Engine).getTemplateAttachments,
		"DELETE /templates/{id}":                           (*Engine).deleteTemplate,
		"GET /tags":                                        (*Engine).getTags,
		"POST /tags":                                       (*Engine).addTag,
		"DELETE /tags/{id}":                                (*Engine).deleteTag,
		"GET /clusters/{cluster}/affinitygroups":           (*Engine).getGroups,
		"POST /clusters/{cluster}/affinitygroups":          (*Engine).addGroup,
		"DELETE /clusters/{cluster}/affinitygroups/{id}":   (*Engine).deleteGroup,
		"GET /clusters/{cluster}/affinitygroups/{id}/vms":  (*Engine).getMembers,
		"POST /clusters/{cluster}/affinitygroups/{id}/vms": (*Engine).addMember,
		"GET /imagetransfers":                              (*Engine).getTransfers,
		"POST /imagetransfers":                             (*Engine).addTransfer,
		"GET /imagetransfers/{id}":                         (*Engine).getTransfer,
		"POST /imagetransfers/{id}/{action}":               (*Engine).actTransfer,
	} {
		var method, path string
		_, _ = fmt.Sscan(pattern, &method, &path)
		if path == "/{$}" {
			path = ""
		}
		mux.HandleFunc(method+" "+apiPath+path, e.api(do))
	}
	return mux
}

// token gives out tokens, and refuses as the engine's SSO does.
func (e *Engine) token(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	e.mu.Lock()
	defer e.mu.Unlock()
	if r.PostFormValue("username") != e.Username || r.PostFormValue("password") != e.Password {
		w.WriteHeader(http.StatusUnauthorized)
		_ = json.NewEncoder(w).Encode(map[string]string{"error_code": "access_denied", "error": "Cannot authenticate user 'N/A': The username or password is incorrect.."})
		return
	}
	token := rand.Text()
	e.tokens[token] = e.uses
	_ = json.NewEncoder(w).Encode(map[string]string{"access_token": token, "token_type": "bearer", "scope": "ovirt-app-api"})
}
