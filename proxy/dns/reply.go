package dns

import "encoding/binary"

// asked is what a response of the proxy's own repeats of a question.
type asked struct {
	id    uint16
	flags [2]byte // third and fourth byte of the header
	edns  edns
}

// edns tells whether, and how, a question has an OPT record.
type edns uint8

const (
	ednsNone edns = iota
	ednsPlain
	ednsDNSSEC // the DO bit is set
)

// maxScan bounds the records of a question that are looked at for its OPT
// record: there is that one, a signature, and what an update or a transfer
// brings along.
const maxScan = 8

// payloadSize is what a response of the proxy's own offers to take: what fits
// into every path (the number agreed on at the DNS flag day 2020).
const payloadSize = 1232

// askedOf is what to repeat of a message with a question that was read.
func askedOf(m []byte, q *question) asked {
	return asked{id: messageID(m), flags: [2]byte{m[2], m[3]}, edns: ednsOf(m, headerSize+len(q.wire))}
}

// ednsOf looks for the OPT record behind the question, which ends at an offset.
func ednsOf(m []byte, at int) edns {
	records := count(m, sectionAnswer) + count(m, sectionAuthority) + count(m, sectionAdditional)
	for range min(records, maxScan) {
		next, ok := skipName(m, at)
		if !ok || next+recordSize > len(m) {
			break
		}
		if binary.BigEndian.Uint16(m[next:]) == typeOPT {
			if m[next+6]&0x80 != 0 {
				return ednsDNSSEC
			}
			return ednsPlain
		}
		at = next + recordSize + int(binary.BigEndian.Uint16(m[next+8:]))
	}
	return ednsNone
}

// maxReply bounds what appendReply appends.
const maxReply = headerSize + maxQuestion + optRecordSize

// appendReply appends a response without records. The question section may lie
// where it is to be appended.
func appendReply(to []byte, a asked, question []byte, code uint8) []byte {
	var h [headerSize]byte
	setMessageID(h[:], a.id)
	h[2] = flagsResponse | a.flags[0]&(flagsOpcode|flagsRecursion)
	h[3] = a.flags[1]&flagsNoCheck | code
	if a.flags[0]&flagsRecursion != 0 {
		h[3] |= flagsAvailable // or stubs complain of that instead
	}
	h[5] = 1
	if a.edns != ednsNone {
		h[11] = 1
	}
	to = append(to, h[:]...)
	to = append(to, question...)
	if a.edns == ednsNone {
		return to
	}
	opt := [optRecordSize]byte{2: typeOPT, 3: payloadSize >> 8, 4: payloadSize & 0xff}
	if a.edns == ednsDNSSEC {
		opt[7] = 0x80
	}
	return append(to, opt[:]...)
}
