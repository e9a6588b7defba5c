// Package apiserver runs a real Kubernetes API server, with the etcd it needs
// and nothing else of a cluster, for tests.
package apiserver

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Version is that of Kubernetes.
const Version = "v1.34.4"

// Server is a running API server, with RBAC. Its certificate is of its own
// making and not worth checking.
type Server struct {
	URL string
	// Token is of a user of system:masters, who may impersonate any other.
	Token string

	once   sync.Once
	client *http.Client

	dir       string
	processes []*exec.Cmd
	logs      map[string]*bytes.Buffer
}

// Binary is where a program of Kubernetes is looked for: WEIR_KUBERNETES, or
// the cache that make fills.
func Binary(name string) (string, error) {
	dir := os.Getenv("WEIR_KUBERNETES")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(cache, "weir", "kubernetes-"+Version)
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s for Kubernetes %s is not built (make test-kube does): %w", name, Version, err)
	}
	return path, nil
}

// Require starts a server that lives as long as the test. Where WEIR_TEST_KUBE
// is not set the test is skipped; where it is, what is missing is a failure.
func Require(t testing.TB) *Server {
	t.Helper()
	if os.Getenv("WEIR_TEST_KUBE") == "" {
		t.Skip("needs a Kubernetes API server: make test-kube")
	}
	s, err := Start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// Start starts a server that keeps what it has in dir, and returns when it is
// ready.
func Start(dir string) (*Server, error) {
	etcd, err := Binary("etcd")
	if err != nil {
		return nil, err
	}
	binary, err := Binary("kube-apiserver")
	if err != nil {
		return nil, err
	}
	var ports [3]string
	for i := range ports {
		if ports[i], err = freePort(); err != nil {
			return nil, err
		}
	}
	token := make([]byte, 16)
	if _, err := rand.Read(token); err != nil {
		return nil, err
	}
	s := &Server{URL: "https://127.0.0.1:" + ports[2], Token: hex.EncodeToString(token), dir: dir, logs: map[string]*bytes.Buffer{}}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	keyText := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	err = errors.Join(
		os.WriteFile(s.path("tokens"), []byte(s.Token+",admin,admin,system:masters\n"), 0o600),
		os.WriteFile(s.path("accounts.key"), keyText, 0o600))
	if err != nil {
		return nil, err
	}
	client, peer := "http://127.0.0.1:"+ports[0], "http://127.0.0.1:"+ports[1]
	err = s.run("etcd", etcd, "--data-dir="+s.path("etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=default="+peer)
	if err == nil {
		err = s.run("kube-apiserver", binary, "--etcd-servers="+client, "--bind-address=127.0.0.1", "--secure-port="+ports[2],
			"--cert-dir="+s.path("certs"), "--token-auth-file="+s.path("tokens"), "--authorization-mode=RBAC",
			"--service-account-issuer=https://weir.test", "--service-account-key-file="+s.path("accounts.key"),
			"--service-account-signing-key-file="+s.path("accounts.key"), "--service-cluster-ip-range=10.96.0.0/16",
			"--disable-admission-plugins=ServiceAccount")
	}
	if err == nil {
		err = s.ready(time.Minute)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Server) run(name, binary string, args ...string) error {
	cmd := exec.Command(binary, args...)
	log := new(bytes.Buffer)
	s.logs[name] = log
	cmd.Stdout, cmd.Stderr = log, log
	// They end with the test, however it ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	s.processes = append(s.processes, cmd)
	return nil
}

func (s *Server) ready(within time.Duration) error {
	last := ""
	for end := time.Now().Add(within); ; time.Sleep(50 * time.Millisecond) {
		status, body, err := s.Do(http.MethodGet, "/readyz", "", nil)
		switch {
		case err != nil:
			last = err.Error()
		case status == http.StatusOK:
			return nil
		default:
			last = string(body)
		}
		if time.Now().After(end) {
			return fmt.Errorf("the API server is not ready after %v: %s", within, strings.TrimSpace(last))
		}
	}
}

// Kubeconfig writes a kubeconfig for the server and returns its path.
func (s *Server) Kubeconfig() (string, error) {
	text := "apiVersion: v1\nkind: Config\ncurrent-context: test\n" +
		"clusters: [{name: test, cluster: {server: " + strconv.Quote(s.URL) + ", insecure-skip-tls-verify: true}}]\n" +
		"users: [{name: test, user: {token: " + strconv.Quote(s.Token) + "}}]\n" +
		"contexts: [{name: test, context: {cluster: test, user: test}}]\n"
	path := s.path("kubeconfig")
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// Close ends the server.
func (s *Server) Close() {
	for _, p := range s.processes {
		p.Process.Kill()
	}
	for _, p := range s.processes {
		p.Wait()
	}
	s.processes = nil
}

// Stop ends the API server, and Restart starts it again with what it had.
func (s *Server) Stop() {
	p := s.processes[len(s.processes)-1]
	p.Process.Kill()
	p.Wait()
}

// Restart starts a server that was stopped, and returns when it is ready.
func (s *Server) Restart() error {
	old := s.processes[len(s.processes)-1]
	s.processes = s.processes[:len(s.processes)-1]
	if err := s.run("kube-apiserver", old.Path, old.Args[1:]...); err != nil {
		return err
	}
	return s.ready(time.Minute)
}

// Log is what etcd or kube-apiserver has said, once the server is closed.
func (s *Server) Log(name string) string { return s.logs[name].String() }

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}
