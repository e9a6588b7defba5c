package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// authority issues the cluster's certificates, for a year from now.
type authority struct {
	dir  string // where certificates and keys are written: NAME.crt, NAME.key
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	next int64
}

// identity is whom a certificate speaks for, as user and group of Kubernetes
// or as the names and addresses of a server.
type identity struct {
	user, group string
	names       []string
	addrs       []netip.Addr
}

func newAuthority(dir string) (*authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a := &authority{dir: dir, key: key, next: 2}
	a.cert = a.template(1, "weir test cluster")
	a.cert.IsCA, a.cert.BasicConstraintsValid = true, true
	a.cert.KeyUsage |= x509.KeyUsageCertSign
	return a, a.write("ca", a.cert, key)
}

func (a *authority) template(serial int64, name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
}

// issue writes NAME.crt and NAME.key, good for both ends of a connection.
func (a *authority) issue(name string, id identity) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("issue certificate %s: %w", name, err)
	}
	t := a.template(a.next, id.user)
	a.next++
	if id.group != "" {
		t.Subject.Organization = []string{id.group}
	}
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	t.DNSNames = id.names
	for _, addr := range id.addrs {
		t.IPAddresses = append(t.IPAddresses, net.IP(addr.AsSlice()))
	}
	return a.write(name, t, key)
}

func (a *authority) write(name string, t *x509.Certificate, key *ecdsa.PrivateKey) error {
	cert, err := x509.CreateCertificate(rand.Reader, t, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("sign certificate %s: %w", name, err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key %s: %w", name, err)
	}
	for file, block := range map[string]*pem.Block{
		".crt": {Type: "CERTIFICATE", Bytes: cert},
		".key": {Type: "EC PRIVATE KEY", Bytes: secret},
	} {
		if err := os.WriteFile(filepath.Join(a.dir, name+file), pem.EncodeToMemory(block), 0o600); err != nil {
			return fmt.Errorf("write certificate %s: %w", name, err)
		}
	}
	return nil
}

// kubeconfig writes a file that says who NAME is and where the API server is.
func (a *authority) kubeconfig(path, name, server string) error {
	var err error
	read := func(file string) []byte {
		content, e := os.ReadFile(filepath.Join(a.dir, file))
		if e != nil && err == nil {
			err = e
		}
		return content
	}
	type object map[string]any
	text, encodeErr := json.MarshalIndent(object{ // YAML, too
		"apiVersion": "v1", "kind": "Config", "current-context": "cluster",
		"clusters": []object{{"name": "cluster", "cluster": object{"server": server, "certificate-authority-data": read("ca.crt")}}},
		"users":    []object{{"name": name, "user": object{"client-certificate-data": read(name + ".crt"), "client-key-data": read(name + ".key")}}},
		"contexts": []object{{"name": "cluster", "context": object{"cluster": "cluster", "user": name}}},
	}, "", "  ")
	if err == nil {
		err = encodeErr
	}
	if err == nil {
		err = os.WriteFile(path, append(text, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("write kubeconfig of %s: %w", name, err)
	}
	return nil
}

// certificates issues all there are, and a kubeconfig for each client below
// the directory, which they are named after.
func (c *Cluster) certificates() error {
	a, err := newAuthority(c.path("pki"))
	if err != nil {
		return fmt.Errorf("make the certificate authority: %w", err)
	}
	inside := "https://" + netip.AddrPortFrom(c.lanAddrs(controlNumber)[0], apiPort).String()
	loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	services := families(c.Config, netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd96::1"))
	err = a.issue("kube-apiserver", identity{
		user:  "kube-apiserver",
		names: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		addrs: append(append(loopback, services...), c.lanAddrs(controlNumber)...),
	})
	if err != nil {
		return err
	}
	for name, id := range map[string]identity{
		"service-accounts": {user: "service-accounts"},
		"kubelet-client":   {user: "kube-apiserver-kubelet-client", group: "system:masters"},
	} {
		if err := a.issue(name, id); err != nil {
			return err
		}
	}
	clients := map[string]identity{
		"admin":                   {user: "admin", group: "system:masters"},
		"kube-controller-manager": {user: "system:kube-controller-manager"},
		"kube-scheduler":          {user: "system:kube-scheduler"},
		"kube-proxy":              {user: "system:kube-proxy"},
	}
	for n, node := range c.Nodes {
		clients[node.Name] = identity{
			user: "system:node:" + node.Name, group: "system:nodes",
			names: []string{node.Name}, addrs: c.lanAddrs(nodeNumber(n)),
		}
	}
	for name, id := range clients {
		if err := a.issue(name, id); err != nil {
			return err
		}
		if err := a.kubeconfig(c.path("pki", name+".kubeconfig"), name, inside); err != nil {
			return err
		}
	}
	if err := a.kubeconfig(c.Kubeconfig(), "admin", fmt.Sprintf("https://127.0.0.1:%d", c.Port)); err != nil {
		return err
	}
	return giveToCaller(c.Kubeconfig())
}
