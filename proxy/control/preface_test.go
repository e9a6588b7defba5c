package control

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// socketPair returns both ends of a connection.
func socketPair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := func(fd int) *net.UnixConn {
		f := os.NewFile(uintptr(fd), "pair")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return c.(*net.UnixConn)
	}
	return conn(fds[0]), conn(fds[1])
}

// openFiles counts the descriptors of this process.
func openFiles(t testing.TB) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

func tempFile(t *testing.T, content string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestFrames(t *testing.T) {
	a, b := socketPair(t)
	sent := &Wiring{Generation: 7, Gateway: []byte{2, 0, 0, 0, 0, 1}, Mtu: 1500, Maps: []string{"x", "y"}}
	if err := Send(a, sent, tempFile(t, "one"), tempFile(t, "two")); err != nil {
		t.Fatal(err)
	}
	// What follows a frame is not read with it.
	if err := Send(a, &Wired{Error: "next"}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Write([]byte("PRI * HTTP/2.0")); err != nil {
		t.Fatal(err)
	}
	got := &Wiring{}
	files, err := Receive(b, got)
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got, sent) {
		t.Errorf("received %v, sent %v", got, sent)
	}
	if len(files) != 2 {
		t.Fatalf("%d descriptors, sent 2", len(files))
	}
	for i, want := range []string{"one", "two"} {
		buf := make([]byte, 8)
		n, _ := files[i].Read(buf)
		if string(buf[:n]) != want {
			t.Errorf("descriptor %d reads %q, want %q", i, buf[:n], want)
		}
		flags, err := unix.FcntlInt(files[i].Fd(), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d is inherited by programs: %#x, %v", i, flags, err)
		}
	}
	Close(files)
	next := &Wired{}
	if files, err = Receive(b, next); err != nil || len(files) != 0 || next.Error != "next" {
		t.Errorf("second frame: %v, %d descriptors, %v", next, len(files), err)
	}
	rest := make([]byte, 64)
	n, err := b.Read(rest)
	if err != nil || string(rest[:n]) != "PRI * HTTP/2.0" {
		t.Errorf("after the frames: %q, %v", rest[:n], err)
	}
}

func TestFramesRefused(t *testing.T) {
	frame := func(magic, size uint32, body string) []byte {
		b := binary.BigEndian.AppendUint32(nil, magic)
		return append(binary.BigEndian.AppendUint32(b, size), body...)
	}
	for name, tt := range map[string]struct {
		bytes []byte
		want  string
	}{
		"nothing":       {nil, "EOF"},
		"half a head":   {frame(magic, 0, "")[:5], "EOF"},
		"another magic": {frame(magic+1, 0, ""), "not a frame"},
		"HTTP":          {[]byte("GET / HTTP/1.1\r\n\r\n"), "not a frame"},
		"too long":      {frame(magic, maxFrame+1, ""), "at most"},
		"longest":       {frame(magic, 1<<32-1, ""), "at most"},
		"half a body":   {frame(magic, 10, "abc"), "EOF"},
		"no message":    {frame(magic, 3, "\xff\xff\xff"), "proto"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := socketPair(t)
			before := openFiles(t)
			// With a descriptor, which must not be left open.
			if len(tt.bytes) > 0 {
				f := tempFile(t, "")
				if _, _, err := a.WriteMsgUnix(tt.bytes, unix.UnixRights(int(f.Fd())), nil); err != nil {
					t.Fatal(err)
				}
				f.Close()
			}
			if err := a.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			files, err := Receive(b, &Wiring{})
			if err == nil || !strings.Contains(err.Error(), tt.want) || len(files) != 0 {
				t.Errorf("%d descriptors, error %v, want %q", len(files), err, tt.want)
			}
			if now := openFiles(t); now != before {
				t.Errorf("%d descriptors are open, %d before", now, before)
			}
		})
	}
}

func TestFrameOneByteAtATime(t *testing.T) {
	a, b := socketPair(t)
	sent := &Welcome{Protocol: 1, Version: "v", Boot: "b", Generation: 3}
	body, err := proto.Marshal(sent)
	if err != nil {
		t.Fatal(err)
	}
	all := binary.BigEndian.AppendUint32(nil, magic)
	all = append(binary.BigEndian.AppendUint32(all, uint32(len(body))), body...)
	go func() {
		f, _ := os.Open(os.DevNull)
		defer f.Close()
		for i := range all {
			rights := []byte(nil)
			if i == len(all)-1 {
				rights = unix.UnixRights(int(f.Fd()))
			}
			if _, _, err := a.WriteMsgUnix(all[i:i+1], rights, nil); err != nil {
				return
			}
		}
	}()
	got := &Welcome{}
	files, err := Receive(b, got)
	defer Close(files)
	if err != nil || len(files) != 1 || !proto.Equal(got, sent) {
		t.Errorf("%v with %d descriptors, %v", got, len(files), err)
	}
}

func TestTooManyDescriptors(t *testing.T) {
	a, b := socketPair(t)
	f := tempFile(t, "")
	many := make([]*os.File, maxDescriptors+1)
	for i := range many {
		many[i] = f
	}
	if err := Send(a, &Wired{}, many...); err == nil {
		t.Error("sent")
	}
	fds := make([]int, maxDescriptors+1)
	for i := range fds {
		fds[i] = int(f.Fd())
	}
	before := openFiles(t)
	head := binary.BigEndian.AppendUint32(nil, magic)
	head = binary.BigEndian.AppendUint32(head, 0)
	if _, _, err := a.WriteMsgUnix(head, unix.UnixRights(fds...), nil); err != nil {
		t.Fatal(err)
	}
	if files, err := Receive(b, &Wired{}); err == nil || len(files) != 0 {
		t.Errorf("received %d descriptors, %v", len(files), err)
	}
	if now := openFiles(t); now != before {
		t.Errorf("%d descriptors are open, %d before", now, before)
	}
}

// FuzzReceive: whatever comes, Receive returns, keeps no descriptor on an
// error, and never takes more than the frame.
func FuzzReceive(f *testing.F) {
	f.Add([]byte{}, false)
	f.Add([]byte("weir\x00\x00\x00\x02\x08\x01rest"), true)
	f.Add([]byte("weir\xff\xff\xff\xff"), true)
	f.Fuzz(func(t *testing.T, in []byte, rights bool) {
		a, b := socketPair(t)
		defer func() { _ = a.Close() }()
		defer func() { _ = b.Close() }()
		var oob []byte
		if rights && len(in) > 0 {
			oob = unix.UnixRights(0)
		}
		if len(in) > maxFrame {
			t.Skip("more than fits into the socket")
		}
		if _, _, err := a.WriteMsgUnix(in, oob, nil); err != nil {
			t.Fatal(err)
		}
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		files, err := Receive(b, &Wiring{})
		if err != nil {
			if len(files) != 0 {
				t.Fatal("descriptors in spite of an error")
			}
			return
		}
		defer Close(files)
		if len(in) < 8 {
			t.Fatal("a frame out of less than a head")
		}
		size := int(binary.BigEndian.Uint32(in[4:]))
		rest := make([]byte, len(in))
		n, _ := b.Read(rest)
		if !bytes.Equal(rest[:n], in[8+size:]) {
			t.Fatalf("left %d bytes of %d behind a frame of %d", n, len(in), 8+size)
		}
	})
}
