package podspec

import (
	"path"
	"slices"
	"strings"

	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// findings collects what is wrong. The rules below it read as sentences: what is
// looked at, and what must hold.
type findings struct{ errs field.ErrorList }

func (f *findings) add(errs ...*field.Error) {
	for _, e := range errs {
		if e != nil {
			f.errs = append(f.errs, e)
		}
	}
}

func (f *findings) invalid(at *field.Path, value any, why ...string) {
	for _, w := range why {
		f.add(field.Invalid(at, value, w))
	}
}

func (f *findings) required(at *field.Path, why string)  { f.add(field.Required(at, why)) }
func (f *findings) forbidden(at *field.Path, why string) { f.add(field.Forbidden(at, why)) }

// need: the text may not be empty.
func (f *findings) need(at *field.Path, value string) bool {
	if value == "" {
		f.required(at, "")
	}
	return value != ""
}

// span: the number lies in the inclusive range.
func (f *findings) span(at *field.Path, n, low, high int64) {
	if n < low || n > high {
		f.invalid(at, n, validation.InclusiveRangeError(int(low), int(high)))
	}
}

func (f *findings) label(at *field.Path, value string) {
	f.invalid(at, value, validation.IsDNS1123Label(value)...)
}

func (f *findings) subdomain(at *field.Path, value string) {
	f.invalid(at, value, validation.IsDNS1123Subdomain(value)...)
}

func (f *findings) qualified(at *field.Path, value, shown string) {
	f.invalid(at, shown, validation.IsQualifiedName(value)...)
}

// objectName: the name of an object that is read by name, and may not be left out.
func (f *findings) objectName(at *field.Path, name string) {
	f.invalid(at, name, apivalidation.NameIsDNSSubdomain(name, false)...)
}

// mode: the permission bits of a file, when given.
func (f *findings) mode(at *field.Path, mode *int32) {
	if mode != nil && (*mode < 0 || *mode > 0o777) {
		f.invalid(at, *mode, "must be a number between 0 and 0777 (octal), both inclusive")
	}
}

// noUp: no element of the path leads upward.
func (f *findings) noUp(at *field.Path, p string) {
	if slices.Contains(strings.Split(p, "/"), "..") {
		f.invalid(at, p, "must not contain '..'")
	}
}

// below: the path is relative and stays below where it starts.
func (f *findings) below(at *field.Path, p string) {
	if path.IsAbs(p) {
		f.invalid(at, p, "must be a relative path")
	}
	f.noUp(at, p)
}

// file: the path of a file that an atomic writer lays into a volume. Names that
// start with two dots are the writer's own.
func (f *findings) file(at *field.Path, p string) {
	f.below(at, p)
	if strings.HasPrefix(p, "..") && !strings.HasPrefix(p, "../") {
		f.invalid(at, p, "must not start with '..'")
	}
}

// oneOf: the value is one of an enumeration.
func oneOf[T ~string](f *findings, at *field.Path, value T, allowed ...T) {
	if !slices.Contains(allowed, value) {
		f.add(field.NotSupported(at, value, allowed))
	}
}

// chosen is oneOf for a field that may not be left out.
func chosen[T ~string](f *findings, at *field.Path, value T, allowed ...T) {
	if f.need(at, string(value)) {
		oneOf(f, at, value, allowed...)
	}
}

// union checks the arms of a one-of type in the API's order: the first that is
// set is looked into, and each further one is forbidden.
type union struct {
	f    *findings
	at   *field.Path
	what string
	set  int
}

// arm looks at one arm. Where the API files what it finds in an arm below another
// name than the arm's own, under gives that name.
func arm[T any](u *union, p *T, name string, check func(*T, *field.Path), under ...string) {
	if p == nil {
		return
	}
	if u.set++; u.set > 1 {
		u.f.forbidden(u.at.Child(name), "may not specify more than 1 "+u.what+" type")
		return
	}
	if len(under) > 0 {
		name = under[0]
	}
	check(p, u.at.Child(name))
}

// end: at least one arm has to be set.
func (u *union) end() {
	if u.set == 0 {
		u.f.required(u.at, "must specify a "+u.what+" type")
	}
}
