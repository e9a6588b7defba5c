package main

import (
	"fmt"
	"net"
	"runtime"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// parserProgram reads what any policy would have to read (EtherType, protocol,
// addresses, ports), bounds checks included, and lets every packet pass. What
// it costs is the price of having a program on the way at all.
func parserProgram() (*ebpf.Program, error) {
	const ethernet, ipv4 = 14, 20
	ins := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		// Headers may lie outside the linear part.
		asm.Mov.Imm(asm.R2, ethernet+ipv4+8),
		asm.FnSkbPullData.Call(),
		asm.LoadMem(asm.R2, asm.R6, 76, asm.Word), // __sk_buff.data
		asm.LoadMem(asm.R3, asm.R6, 80, asm.Word), // __sk_buff.data_end
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, ethernet+ipv4+8),
		asm.JGT.Reg(asm.R4, asm.R3, "pass"),
		asm.LoadMem(asm.R5, asm.R2, 12, asm.Half),
		asm.JNE.Imm(asm.R5, 0x0008, "pass"), // ETH_P_IP as it lies in the packet
		asm.LoadMem(asm.R5, asm.R2, ethernet, asm.Byte),
		asm.JNE.Imm(asm.R5, 0x45, "pass"), // no options
		asm.LoadMem(asm.R5, asm.R2, ethernet+9, asm.Byte),
		asm.JEq.Imm(asm.R5, unix.IPPROTO_TCP, "ports"),
		asm.JNE.Imm(asm.R5, unix.IPPROTO_UDP, "pass"),
		asm.LoadMem(asm.R7, asm.R2, ethernet+12, asm.Word).WithSymbol("ports"),
		asm.LoadMem(asm.R8, asm.R2, ethernet+16, asm.Word),
		asm.LoadMem(asm.R9, asm.R2, ethernet+ipv4, asm.Word),
		// Kept on the stack, as a tuple would be.
		asm.StoreMem(asm.RFP, -8, asm.R7, asm.Word),
		asm.StoreMem(asm.RFP, -12, asm.R8, asm.Word),
		asm.StoreMem(asm.RFP, -16, asm.R9, asm.Word),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("pass"), // TCX_NEXT
		asm.Return(),
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "parse_only", Type: ebpf.SchedCLS, Instructions: ins, License: "Apache-2.0"})
	if err != nil {
		return nil, fmt.Errorf("load the parsing program: %w", err)
	}
	return p, nil
}

// attachParser puts the program on both directions of every pod's veth, where
// Weir has its own.
func attachParser(n *node) ([]link.Link, error) {
	prog, err := parserProgram()
	if err != nil {
		return nil, err
	}
	defer prog.Close()
	var links []link.Link
	err = insideNamespace(n.name, func() error {
		for _, p := range n.pods {
			dev, err := net.InterfaceByName(p.dev)
			if err != nil {
				return fmt.Errorf("find %s: %w", p.dev, err)
			}
			for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
				l, err := link.AttachTCX(link.TCXOptions{Interface: dev.Index, Program: prog, Attach: at})
				if err != nil {
					return fmt.Errorf("attach to %s: %w", p.dev, err)
				}
				links = append(links, l)
			}
		}
		return nil
	})
	return links, err
}

// insideNamespace calls f on a thread that is in the network namespace.
func insideNamespace(ns string, f func() error) error {
	fd, err := unix.Open(netnsPath(ns), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", ns, err)
	}
	defer unix.Close(fd)
	result := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine and takes the
		// changed namespace with it.
		runtime.LockOSThread()
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("enter namespace %s: %w", ns, err)
			return
		}
		result <- f()
	}()
	return <-result
}
