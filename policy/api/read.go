package api

import (
	"fmt"
	"strings"
)

// Objects is what a file holds.
type Objects struct {
	// Policies and CIDRGroups, refused ones included.
	Policies   []*Policy
	CIDRGroups []*CIDRGroup
	// Others are the documents of kinds that are not this package's.
	Others []Document
	// Errors are documents that are no objects: nobody can tell what they
	// would have said.
	Errors []*Error
}

// Read decodes every policy object of a file.
func Read(file string, data []byte) Objects {
	docs, errs := Documents(file, data)
	out := Objects{Errors: errs}
	for i := range docs {
		if p := docs[i].Policy(); p != nil {
			out.Policies = append(out.Policies, p)
		} else if g := docs[i].CIDRGroup(); g != nil {
			out.CIDRGroups = append(out.CIDRGroups, g)
		} else {
			out.Others = append(out.Others, docs[i])
		}
	}
	return out
}

// NotEnforced warns of an object that changes what traffic may pass under
// other software, and that Weir does not enforce; nil for the rest.
func (doc *Document) NotEnforced() *Error {
	group, _, _ := strings.Cut(doc.APIVersion, "/")
	enforces := false
	switch {
	case group == "cilium.io":
		enforces = strings.HasSuffix(doc.Kind, "Policy") || strings.HasSuffix(doc.Kind, "EnvoyConfig")
	case group == "policy.networking.k8s.io", strings.HasSuffix(group, "projectcalico.org"):
		enforces = strings.HasSuffix(doc.Kind, "Policy")
	}
	if !enforces {
		return nil
	}
	return &Error{File: doc.Source.File, Document: doc.Source.Document, Line: doc.Source.Line, Field: "kind",
		Message: fmt.Sprintf("%s of %s is not enforced", doc.Kind, group)}
}
