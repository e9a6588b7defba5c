package http

import "github.com/weirnet/weir/policy/httprules"

// Reason tells why a Record's verdict is what it is. String is its label in
// flows and metrics.
type Reason uint8

// Reasons, by verdict.
const (
	ReasonNone Reason = iota

	// Allowed.
	ReasonRule     // a rule allows it
	ReasonAllowAll // a rule without L7 allows everything, or nothing is enforced
	// Denied.
	ReasonNoRule  // no rule allows it
	ReasonClosed  // the rules are not known, so nothing passes
	ReasonCost    // none, but one costs too much to tell for this request
	ReasonConnect // CONNECT where HTTP rules apply
	// What an upgraded connection began with passed, and would not any more.
	ReasonPolicyChanged

	// Refused: the request's first line and target.
	ReasonRequestLine
	ReasonMethod
	ReasonVersion
	ReasonHTTP2
	ReasonTargetLong
	ReasonTargetForm
	ReasonTargetScheme
	ReasonTargetHost
	ReasonPathForm // from here on as httprules.PathError has them
	ReasonPathControl
	ReasonPathNonASCII
	ReasonPathFragment
	ReasonPathBackslash
	ReasonPathEncodedSlash
	ReasonPathNUL
	ReasonPathEscape
	ReasonPathOverlong
	ReasonPathDotParameter
	// Refused: lines and fields.
	ReasonHeadLong
	ReasonTooManyFields
	ReasonHeadTimeout
	ReasonHeadTruncated
	ReasonBareCR
	ReasonBareLF
	ReasonNUL
	ReasonObsFold
	ReasonSpaceBeforeColon
	ReasonFieldName
	ReasonFieldValue
	ReasonHostMissing
	ReasonHostRepeated
	ReasonHostInvalid
	ReasonConnectionOption
	ReasonExpect
	ReasonUpgrade
	// Refused: framing.
	ReasonContentLength
	ReasonContentLengthRepeated
	ReasonTransferEncoding
	ReasonLengthAndEncoding
	ReasonChunkSize
	ReasonChunkExtension
	ReasonChunkEnd
	ReasonTrailer
	ReasonBodyTruncated
	// Refused: the server's response (Record.Response). Its lines, fields and
	// framing have the reasons above.
	ReasonStatusLine
	ReasonInterim
	ReasonUnsolicited
	// Failed.
	ReasonUnreachable
	ReasonReset
	ReasonServerClosed
	ReasonIdle
	ReasonAborted
	ReasonMemory

	reasons
)

var reasonLabels = [reasons]string{
	ReasonNone:                  "none",
	ReasonRule:                  "http-rule",
	ReasonAllowAll:              "http-allow-all",
	ReasonNoRule:                "http-denied",
	ReasonClosed:                "http-closed",
	ReasonCost:                  "http-rule-cost",
	ReasonConnect:               "http-connect",
	ReasonPolicyChanged:         "policy-changed",
	ReasonRequestLine:           "request-line",
	ReasonMethod:                "method",
	ReasonVersion:               "version",
	ReasonHTTP2:                 "http2",
	ReasonTargetLong:            "target-long",
	ReasonTargetForm:            "target-form",
	ReasonTargetScheme:          "target-scheme",
	ReasonTargetHost:            "target-host",
	ReasonHeadLong:              "head-long",
	ReasonTooManyFields:         "too-many-fields",
	ReasonHeadTimeout:           "head-timeout",
	ReasonHeadTruncated:         "head-truncated",
	ReasonBareCR:                "bare-cr",
	ReasonBareLF:                "bare-lf",
	ReasonNUL:                   "nul",
	ReasonObsFold:               "obs-fold",
	ReasonSpaceBeforeColon:      "space-before-colon",
	ReasonFieldName:             "field-name",
	ReasonFieldValue:            "field-value",
	ReasonHostMissing:           "host-missing",
	ReasonHostRepeated:          "host-repeated",
	ReasonHostInvalid:           "host-invalid",
	ReasonConnectionOption:      "connection-option",
	ReasonExpect:                "expect",
	ReasonUpgrade:               "upgrade",
	ReasonContentLength:         "content-length",
	ReasonContentLengthRepeated: "content-length-repeated",
	ReasonTransferEncoding:      "transfer-encoding",
	ReasonLengthAndEncoding:     "length-and-encoding",
	ReasonChunkSize:             "chunk-size",
	ReasonChunkExtension:        "chunk-extension",
	ReasonChunkEnd:              "chunk-end",
	ReasonTrailer:               "trailer",
	ReasonBodyTruncated:         "body-truncated",
	ReasonStatusLine:            "status-line",
	ReasonInterim:               "interim-response",
	ReasonUnsolicited:           "unsolicited-response",
	ReasonUnreachable:           "upstream-unreachable",
	ReasonReset:                 "reset",
	ReasonServerClosed:          "server-closed",
	ReasonIdle:                  "idle",
	ReasonAborted:               "aborted",
	ReasonMemory:                "memory",
}

// String implements fmt.Stringer.
func (r Reason) String() string {
	if r >= ReasonPathForm && r <= ReasonPathDotParameter {
		return (httprules.PathForm + httprules.PathError(r-ReasonPathForm)).String()
	}
	if r < reasons {
		return reasonLabels[r]
	}
	return "unknown"
}

// status is what a client is told where its request is refused for r.
func (r Reason) status() int {
	switch r {
	case ReasonNoRule, ReasonClosed, ReasonCost, ReasonConnect:
		return 403
	case ReasonHeadTimeout:
		return 408
	case ReasonTargetLong:
		return 414
	case ReasonExpect:
		return 417
	case ReasonHeadLong, ReasonTooManyFields:
		return 431
	case ReasonVersion, ReasonHTTP2:
		return 505
	}
	return 400
}
