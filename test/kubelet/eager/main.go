// Command eager connects to addresses, one after the other, from its first
// instruction on, and then tells what came of it in a line of JSON:
//
//	eager DURATION ADDRESS...
//
// or accepts connections:
//
//	eager serve ADDRESS
package main

import (
	"encoding/json"
	"net"
	"os"
	"time"
)

func main() {
	start := time.Now()
	if os.Args[1] == "serve" {
		serve(os.Args[2])
	}
	long, err := time.ParseDuration(os.Args[1])
	if err != nil {
		panic(err)
	}
	to := os.Args[2:]
	var told struct {
		Tried, Passed int
		First         time.Duration // from the start until one passed
	}
	for i := 0; time.Since(start) < long; i++ {
		c, err := net.DialTimeout("tcp", to[i%len(to)], 50*time.Millisecond)
		told.Tried++
		if err != nil {
			continue
		}
		c.Close()
		if told.Passed++; told.Passed == 1 {
			told.First = time.Since(start)
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(told); err != nil {
		panic(err)
	}
}

func serve(address string) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		panic(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			panic(err)
		}
		c.Close()
	}
}
