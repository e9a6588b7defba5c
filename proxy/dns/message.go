package dns

import "encoding/binary"

// Layout and numbers of RFC 1035, as far as they are looked at.
const (
	headerSize = 12
	idSize     = 2

	flagsResponse  = 0x80 // in the third byte
	flagsOpcode    = 0x78
	flagsTruncated = 0x02
	flagsRecursion = 0x01 // desired
	flagsAvailable = 0x80 // recursion, in the fourth byte
	flagsNoCheck   = 0x10
	flagsRCode     = 0x0f

	opcodeQuery = 0

	typeA     = 1
	typeCNAME = 5
	typeAAAA  = 28
	typeOPT   = 41
	typeIXFR  = 251
	typeAXFR  = 252

	classIN = 1

	rcodeSuccess  = 0
	rcodeFailed   = 2 // SERVFAIL
	rcodeNoName   = 3 // NXDOMAIN
	rcodeRefused  = 5
	maxLabel      = 63
	maxName       = 255 // on the wire
	maxNameText   = 4 * maxName
	maxQuestion   = maxName + 4
	recordSize    = 10 // without name and data
	optRecordSize = 1 + recordSize
)

func messageID(m []byte) uint16       { return binary.BigEndian.Uint16(m) }
func setMessageID(m []byte, n uint16) { binary.BigEndian.PutUint16(m, n) }
func isResponse(m []byte) bool        { return m[2]&flagsResponse != 0 }
func opcode(m []byte) uint8           { return m[2] & flagsOpcode >> 3 }
func rcode(m []byte) uint8            { return m[3] & flagsRCode }

// count is one of the header's four.
func count(m []byte, section int) int { return int(binary.BigEndian.Uint16(m[4+2*section:])) }

// Sections of a message.
const (
	sectionQuestion = iota
	sectionAnswer
	sectionAuthority
	sectionAdditional
)

// question is the one question of a message.
type question struct {
	// wire is the question section: name, type, class.
	wire        []byte
	kind, class uint16
	// name is the asked name in normal form (see package dnsrules), in memory of
	// its own.
	name []byte
	text [maxNameText]byte
}

// read reads the question of a message whose header says that it is alone. A
// name there can't be compressed: nothing stands before it that it could point
// to. What is read is what any server reads, or it fails.
func (q *question) read(m []byte) bool {
	if len(m) < headerSize || count(m, sectionQuestion) != 1 {
		return false
	}
	q.name = q.text[:0]
	at := headerSize
	for {
		if at >= len(m) {
			return false
		}
		n := int(m[at])
		at++
		if n == 0 {
			break
		}
		if n > maxLabel || at+n >= len(m) || at+n-headerSize >= maxName {
			return false
		}
		if len(q.name) > 0 {
			q.name = append(q.name, '.')
		}
		q.name = appendLabel(q.name, m[at:at+n], true)
		at += n
	}
	if len(m) < at+4 {
		return false
	}
	q.kind = binary.BigEndian.Uint16(m[at:])
	q.class = binary.BigEndian.Uint16(m[at+2:])
	q.wire = m[headerSize : at+4]
	return true
}

// sameQuestion tells whether two question sections ask the same: the case of
// letters in the name doesn't count.
func sameQuestion(a, b []byte) bool {
	if len(a) != len(b) || len(a) < 5 {
		return false
	}
	// Lengths of labels are no letters, and type and class must be equal.
	name := len(a) - 4
	for i := range a {
		if a[i] != b[i] && (i >= name || lower(a[i]) != lower(b[i])) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// appendLabel spells a label as master files do: what is no letter, digit,
// hyphen or underscore does not look like one of those, or like a dot.
func appendLabel(to, label []byte, fold bool) []byte {
	for _, c := range label {
		switch {
		case c < ' ' || c > '~':
			to = append(to, '\\', '0'+c/100, '0'+c/10%10, '0'+c%10)
			continue
		case c == '.' || c == ' ' || c == '\'' || c == '@' || c == ';' || c == '(' || c == ')' || c == '"' || c == '\\':
			to = append(to, '\\')
		case fold:
			c = lower(c)
		}
		to = append(to, c)
	}
	return to
}

// AppendName appends the name at the beginning of a question section as it was
// asked, without the final dot; the root is ".". The section is one that was
// read.
func AppendName(to, question []byte) []byte {
	begin := len(to)
	for at := 0; at < len(question) && question[at] != 0; {
		n := int(question[at])
		at++
		if at+n > len(question) {
			break
		}
		if len(to) > begin {
			to = append(to, '.')
		}
		to = appendLabel(to, question[at:at+n], false)
		at += n
	}
	if len(to) == begin {
		return append(to, '.')
	}
	return to
}

// skipName returns the offset behind the name at an offset; ok: it is there.
func skipName(m []byte, at int) (next int, ok bool) {
	for at < len(m) {
		switch n := int(m[at]); {
		case n == 0:
			return at + 1, true
		case n <= maxLabel:
			at += 1 + n
		case n >= 0xc0 && at+1 < len(m):
			return at + 2, true
		default:
			return 0, false
		}
	}
	return 0, false
}

// maxPointers bounds the pointers that one name is made of: a name has fewer
// labels, and no more than one pointer has any use behind each.
const maxPointers = 127

// appendName appends the name at an offset in normal form. Pointers must lead
// backwards, each further than the one before, and be no more than a name needs:
// thousands in a row, read again for every record, would hold up all pods.
func appendName(to, m []byte, at int) (_ []byte, ok bool) {
	begin, before, size, pointers := len(to), at, 1, 0
	for at < len(m) {
		n := int(m[at])
		switch {
		case n == 0:
			return to, true
		case n >= 0xc0:
			if at+1 >= len(m) {
				return to, false
			}
			at = (n&0x3f)<<8 | int(m[at+1])
			if pointers++; at < headerSize || at >= before || pointers > maxPointers {
				return to, false
			}
			before = at
		case n > maxLabel || at+1+n > len(m):
			return to, false
		default:
			if size += 1 + n; size > maxName {
				return to, false
			}
			if len(to) > begin {
				to = append(to, '.')
			}
			to = appendLabel(to, m[at+1:at+1+n], true)
			at += 1 + n
		}
	}
	return to, false
}
