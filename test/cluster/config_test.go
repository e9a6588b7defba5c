package cluster

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConfig(t *testing.T) {
	c, err := Config{}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	want := Config{Name: DefaultName, NodeCount: 1, CNI: "ptp", ProxyMode: "iptables", Controllers: "*"}
	if c != want {
		t.Errorf("defaults are %+v, want %+v", c, want)
	}
	for says, c := range map[string]Config{
		"name of cluster":      {Name: "../etc"},
		"nodes":                {NodeCount: 201},
		"CNI plugin":           {CNI: "flannel"},
		"kube-proxy mode":      {ProxyMode: "ipvs"},
		"DNS upstream":         {DNSUpstream: "dns.example"},
		`name of cluster "a.b`: {Name: "a.b"},
	} {
		if _, err := c.withDefaults(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: error %v, want one that says %q", c, err, says)
		}
	}
}

// No address belongs to two.
func TestAddresses(t *testing.T) {
	c := Config{NodeCount: 200, DualStack: true}
	seen := map[netip.Addr]bool{}
	for _, n := range []int{routerNumber, controlNumber} {
		for _, a := range c.lanAddrs(n) {
			seen[a] = true
		}
	}
	cidrs := map[netip.Prefix]bool{}
	for i := range c.NodeCount {
		for f, a := range c.lanAddrs(nodeNumber(i)) {
			if seen[a] {
				t.Fatalf("node %d has %s, which is another's", i, a)
			}
			seen[a] = true
			p := c.podCIDRs(i + 1)[f]
			if cidrs[p] || !netip.MustParsePrefix(c.clusterCIDRs()[f]).Contains(p.Addr()) {
				t.Fatalf("pods of node %d have %s, which is another's or out of %s", i, p, c.clusterCIDRs()[f])
			}
			cidrs[p] = true
		}
	}
}

// A kubeconfig holds a certificate that the authority in it signed, for the
// user it is named after.
func TestKubeconfig(t *testing.T) {
	dir := t.TempDir()
	a, err := newAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.issue("node1", identity{user: "system:node:node1", group: "system:nodes"}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "kubeconfig")
	if err := a.kubeconfig(path, "node1", "https://192.0.2.10:6443"); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Clusters []struct {
			Cluster struct {
				CA []byte `json:"certificate-authority-data"`
			}
		}
		Users []struct {
			User struct {
				Cert []byte `json:"client-certificate-data"`
			}
		}
	}
	if err := json.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(config.Clusters[0].Cluster.CA) {
		t.Fatal("no authority in the kubeconfig")
	}
	block, _ := pem.Decode(config.Users[0].User.Cert)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if cert.Subject.CommonName != "system:node:node1" || len(cert.Subject.Organization) != 1 || cert.Subject.Organization[0] != "system:nodes" {
		t.Errorf("the certificate is %s's", cert.Subject)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("everybody may read the kubeconfig: %v %v", info.Mode(), err)
	}
}
