package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// demoWidth is how many columns the demo writes at most.
const demoWidth = 100

// screen is where the demo writes.
type screen struct {
	out   io.Writer
	color bool
	live  bool // a terminal: lines may be rewritten
}

func newScreen(out io.Writer) *screen {
	f, ok := out.(*os.File)
	return &screen{out: out, color: wantsColor(out), live: ok && isTerminal(f)}
}

// Colours by meaning.
const (
	paintBold   = "1"
	paintDim    = "2"
	paintRed    = "31"
	paintGreen  = "32"
	paintYellow = "33"
	paintCyan   = "36"
)

func (s *screen) paint(color, text string) string {
	if !s.color || text == "" {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

func (s *screen) say(text string) { fmt.Fprintln(s.out, text) }

func (s *screen) title(title, below string) {
	s.say("\n" + s.paint(paintBold, title) + "\n" + s.paint(paintDim, below) + "\n")
}

func (s *screen) heading(text string) {
	s.say("\n" + s.paint(paintBold+";"+paintCyan, text) + " " + s.paint(paintDim, strings.Repeat("─", demoWidth-utf8.RuneCountInString(text)-1)))
}

// step shows what is being done, for how long, and that it is done.
func (s *screen) step(doing string, do func() error) error {
	began := time.Now()
	line := func(mark string) string {
		return fmt.Sprintf("  %s %-60s %5.1f s", mark, doing, time.Since(began).Seconds())
	}
	stop := make(chan struct{})
	var ticking sync.WaitGroup
	if s.live {
		ticking.Go(func() {
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for {
				fmt.Fprint(s.out, "\r"+line(s.paint(paintYellow, "…")))
				select {
				case <-stop:
					fmt.Fprint(s.out, "\r")
					return
				case <-tick.C:
				}
			}
		})
	}
	err := do()
	close(stop)
	ticking.Wait()
	mark := s.paint(paintGreen, "✓")
	if err != nil {
		mark = s.paint(paintRed, "✗")
	}
	s.say(line(mark))
	return err
}

// fit cuts or fills a text to a number of columns.
func fit(text string, width int) string {
	n := utf8.RuneCountInString(text)
	if n <= width {
		return text + strings.Repeat(" ", width-n)
	}
	return string([]rune(text)[:width-1]) + "…"
}
