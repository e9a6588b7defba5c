package control

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Protocol is the version of the conversation this binary speaks.
const Protocol = 2

// magic opens every frame of the preface.
const magic = 0x77656972

// Bounds of a frame: what a peer can make the other one read or hold.
const (
	maxFrame       = 1 << 16
	maxDescriptors = 32
)

// Send writes m as one frame of the preface, with the descriptors. They stay
// the caller's.
func Send(c *net.UnixConn, m proto.Message, files ...*os.File) error {
	if len(files) > maxDescriptors {
		return fmt.Errorf("send %s: %d descriptors, at most %d", name(m), len(files), maxDescriptors)
	}
	b := make([]byte, 8, 8+proto.Size(m))
	b, err := proto.MarshalOptions{}.MarshalAppend(b, m)
	if err != nil {
		return fmt.Errorf("send %s: %w", name(m), err)
	}
	if len(b)-8 > maxFrame {
		return fmt.Errorf("send %s: %d bytes, at most %d", name(m), len(b)-8, maxFrame)
	}
	binary.BigEndian.PutUint32(b, magic)
	binary.BigEndian.PutUint32(b[4:], uint32(len(b)-8))
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	n, _, err := c.WriteMsgUnix(b, rights, nil)
	if err != nil {
		return fmt.Errorf("send %s: %w", name(m), err)
	}
	if n == len(b) {
		return nil // the peer may have answered and hung up by now
	}
	if _, err := c.Write(b[n:]); err != nil {
		return fmt.Errorf("send %s: %w", name(m), err)
	}
	return nil
}

// Receive reads one frame of the preface into m, and not a byte more. The
// descriptors that came with it are the caller's, close-on-exec; none is left
// open when it fails.
func Receive(c *net.UnixConn, m proto.Message) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			Close(files)
			files = nil
			err = fmt.Errorf("receive %s: %w", name(m), err)
		}
	}()
	var head [8]byte
	if files, err = readFull(c, head[:], files); err != nil {
		return files, err
	}
	if binary.BigEndian.Uint32(head[:]) != magic {
		return files, errors.New("not a frame of this protocol")
	}
	n := binary.BigEndian.Uint32(head[4:])
	if n > maxFrame {
		return files, fmt.Errorf("a frame of %d bytes, at most %d", n, maxFrame)
	}
	body := make([]byte, n)
	if files, err = readFull(c, body, files); err != nil {
		return files, err
	}
	if err := proto.Unmarshal(body, m); err != nil {
		return files, err
	}
	return files, nil
}

// Close closes descriptors that came with a frame.
func Close(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// readFull fills b and collects descriptors on the way.
func readFull(c *net.UnixConn, b []byte, files []*os.File) ([]*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4*maxDescriptors))
	for len(b) > 0 {
		n, oobn, flags, _, err := c.ReadMsgUnix(b, oob)
		if oobn > 0 {
			got, rightsErr := rights(oob[:oobn])
			files = append(files, got...)
			if rightsErr != nil {
				return files, rightsErr
			}
		}
		if err != nil {
			return files, err
		}
		if flags&unix.MSG_CTRUNC != 0 || len(files) > maxDescriptors {
			return files, fmt.Errorf("more than %d descriptors", maxDescriptors)
		}
		if n == 0 {
			return files, io.ErrUnexpectedEOF
		}
		b = b[n:]
	}
	return files, nil
}

func rights(oob []byte) ([]*os.File, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // not descriptors
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

func name(m proto.Message) string { return string(m.ProtoReflect().Descriptor().Name()) }
