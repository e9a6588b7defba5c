package http

import "github.com/weirnet/weir/policy/httprules"

// chunked follows a chunked body as it passes. Every byte is judged before it
// is passed on.
type chunked struct {
	state  chunkState
	digits uint8
	size   int64 // of the chunk; in its data: what is left of it
	line   int   // length of the line so far
	excess int64 // bytes that were no data, beyond what chunks must have
	total  int   // of the trailer
	name   [18]byte
	named  uint8 // length of the trailer field's name; beyond len(name): longer
}

type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkExt
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	chunkTrailer // start of a line
	chunkTrailerName
	chunkTrailerValue
	chunkTrailerLF
	chunkLastLF
	chunkDone
)

// next judges b and returns how much of it is part of the body. done: the body
// ends there.
func (c *chunked) next(b []byte) (n int, done bool, r Reason) {
	for n < len(b) {
		if c.state == chunkData {
			k := int64(len(b) - n)
			if k < c.size {
				c.size -= k
				return len(b), false, 0
			}
			n += int(c.size)
			c.size = 0
			c.state = chunkDataCR
			continue
		}
		if r := c.step(b[n]); r != 0 {
			return n, false, r
		}
		n++
		if c.state == chunkDone {
			return n, true, 0
		}
	}
	return n, false, 0
}

func (c *chunked) step(b byte) Reason {
	switch c.state {
	case chunkSize:
		c.line++
		switch v := httprules.HexDigit(b); {
		case v < 16:
			// 15 digits are an exabyte; 16 could overflow.
			if c.digits++; c.digits > 15 {
				return ReasonChunkSize
			}
			c.size = c.size<<4 | int64(v)
		case c.digits == 0:
			return ReasonChunkSize
		case b == '\r':
			c.state = chunkSizeLF
		case b == ';':
			c.state = chunkExt
		default:
			return ReasonChunkSize
		}
	case chunkExt:
		c.line++
		switch {
		case c.line > maxChunkLine:
			return ReasonChunkExtension
		case b == '\r':
			c.state = chunkSizeLF
		case b >= 0x80 || headByte[b]&valueByte == 0:
			return ReasonChunkExtension
		}
	case chunkSizeLF:
		if b != '\n' {
			return ReasonBareCR
		}
		c.excess = max(0, c.excess+int64(c.line)+3-16-c.size)
		switch {
		case c.excess > maxChunkExcess:
			return ReasonChunkExtension
		case c.size == 0:
			c.state = chunkTrailer
		default:
			c.state = chunkData
		}
		c.line, c.digits = 0, 0
	case chunkDataCR:
		if b != '\r' {
			return ReasonChunkEnd
		}
		c.state = chunkDataLF
	case chunkDataLF:
		if b != '\n' {
			return ReasonChunkEnd
		}
		c.state = chunkSize
	default:
		return c.trailer(b)
	}
	return 0
}

// trailer judges a byte of the trailer section.
func (c *chunked) trailer(b byte) Reason {
	if c.total++; c.total > maxTrailer {
		return ReasonTrailer
	}
	switch c.state {
	case chunkTrailer, chunkTrailerName:
		switch {
		case c.state == chunkTrailer && b == '\r':
			c.state = chunkLastLF
		case c.state == chunkTrailerName && b == ':':
			if forbiddenTrailer(c.name[:min(int(c.named), len(c.name))]) {
				return ReasonTrailer
			}
			c.state = chunkTrailerValue
		case headByte[b]&tokenByte != 0:
			if c.state == chunkTrailer {
				c.named = 0
			}
			if int(c.named) < len(c.name) {
				c.name[c.named] = b
				c.named++
			}
			c.state = chunkTrailerName
		default:
			return ReasonTrailer
		}
	case chunkTrailerValue:
		switch {
		case b == '\r':
			c.state = chunkTrailerLF
		case headByte[b]&valueByte == 0:
			return ReasonTrailer
		}
	case chunkTrailerLF:
		if b != '\n' {
			return ReasonTrailer
		}
		c.state = chunkTrailer
	case chunkLastLF:
		if b != '\n' {
			return ReasonTrailer
		}
		c.state = chunkDone
	}
	return 0
}

// forbiddenTrailer tells of fields that mean something for the message or its
// way: where a server merges trailers into the header, they would change what
// was judged.
func forbiddenTrailer(name []byte) bool {
	for _, f := range [...]string{"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect", "content-encoding", "content-type", "content-range", "authorization", "cookie"} {
		if lower(name, f) {
			return true
		}
	}
	return false
}
