package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"github.com/berthd/berth/cri/snapshot"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
)

// Code says what kind of thing went wrong with an image.
type Code string

// The codes, with the errdefs class each belongs to.
const (
	CodeInvalidReference   Code = "InvalidReference"    // ErrInvalidArgument
	CodeNotFound           Code = "NotFound"            // ErrNotFound: no such image stored here
	CodeTagNotFound        Code = "TagNotFound"         // ErrNotFound: repository exists, tag or digest does not
	CodeRepositoryNotFound Code = "RepositoryNotFound"  // ErrNotFound
	CodeUnauthorized       Code = "Unauthorized"        // ErrPermissionDenied
	CodeUnavailable        Code = "RegistryUnavailable" // ErrUnavailable
	CodeStalled            Code = "Stalled"             // ErrUnavailable
	CodeRateLimited        Code = "RateLimited"         // ErrUnavailable: the registry answers 429
	CodeDigestMismatch     Code = "DigestMismatch"      // ErrDataLoss
	CodeDiskFull           Code = "DiskFull"            // ErrResourceExhausted
	CodeLimit              Code = "LimitExceeded"       // ErrResourceExhausted
	CodeBadImage           Code = "BadImage"            // ErrInvalidArgument: manifest, configuration or layer invalid
	CodeBadArchive         Code = "BadArchive"          // ErrInvalidArgument
	CodePlatform           Code = "PlatformMismatch"    // ErrNotFound: nothing for this machine's platform
	CodeDamaged            Code = "Damaged"             // ErrDataLoss: stored content is not what it was
	CodeHost               Code = "Host"                // ErrInternal: this machine refused something
	CodeCanceled           Code = "Canceled"            // context.Canceled
)

var classes = map[Code]error{
	CodeInvalidReference: errdefs.ErrInvalidArgument, CodeNotFound: errdefs.ErrNotFound,
	CodeTagNotFound: errdefs.ErrNotFound, CodeRepositoryNotFound: errdefs.ErrNotFound,
	CodeUnauthorized: errdefs.ErrPermissionDenied, CodeUnavailable: errdefs.ErrUnavailable,
	CodeStalled: errdefs.ErrUnavailable, CodeRateLimited: errdefs.ErrUnavailable, CodeDigestMismatch: errdefs.ErrDataLoss,
	CodeDiskFull: errdefs.ErrResourceExhausted, CodeLimit: errdefs.ErrResourceExhausted,
	CodeBadImage: errdefs.ErrInvalidArgument, CodeBadArchive: errdefs.ErrInvalidArgument,
	CodePlatform: errdefs.ErrNotFound, CodeDamaged: errdefs.ErrDataLoss,
	CodeHost: errdefs.ErrInternal, CodeCanceled: context.Canceled,
}

var advice = map[Code]string{
	CodeInvalidReference:   "write it as [registry/]name[:tag] or [registry/]name@sha256:digest, in lower case",
	CodeNotFound:           "pull or import it first",
	CodeTagNotFound:        "the repository exists: check the tag or digest",
	CodeRepositoryNotFound: "check the name's spelling and, for a private repository, the pull secret",
	CodeUnauthorized:       "give credentials that may pull it (imagePullSecrets), or check that they have not expired",
	CodeUnavailable:        "check that the registry runs and that this machine reaches it; it is tried again",
	CodeStalled:            "the connection stopped giving data; it is tried again and goes on where it stopped",
	CodeRateLimited:        "wait, pull less often, use a mirror, or log in for a higher limit",
	CodeDigestMismatch:     "the registry or something on the way changed the content; nothing of it was kept",
	CodeDiskFull:           "free space on the image file system, or remove images",
	CodeLimit:              "build a smaller image, or raise the limit in the configuration",
	CodeBadImage:           "build or push the image again",
	CodeBadArchive:         "create the archive again, as an OCI layout or with docker save",
	CodePlatform:           "build or choose an image for this machine's architecture",
	CodeDamaged:            "pull or import the image again",
	CodeHost:               "see the message; berth check tells what the host lacks",
}

// Error is every error of this package: what was done, on which image, why it
// failed, and what to do about it. errors.Is finds the errdefs class, and the cause.
type Error struct {
	Op   string
	Ref  string
	Code Code
	Err  error
}

// Error makes a sentence of it.
func (e *Error) Error() string {
	text := e.Op
	if e.Ref != "" {
		text += " " + e.Ref
	}
	text += ": " + e.Err.Error()
	if a := advice[e.Code]; a != "" {
		text += ": " + a
	}
	return text
}

// Unwrap gives the class and the cause.
func (e *Error) Unwrap() []error { return []error{classes[e.Code], e.Err} }

// CodeOf tells the code in err's chain; empty if there is none.
func CodeOf(err error) Code {
	var ie *Error
	if errors.As(err, &ie) {
		return ie.Code
	}
	return ""
}

// coded gives err a code on its way up, before the outermost op wraps it.
type coded struct {
	code Code
	err  error
}

func (c *coded) Error() string { return c.err.Error() }
func (c *coded) Unwrap() error { return c.err }

func codef(code Code, format string, args ...any) error {
	return &coded{code: code, err: fmt.Errorf(format, args...)}
}

// failed makes err an *Error, finding its code. The outermost operation wins.
func failed(op, ref string, err error) error {
	if err == nil {
		return nil
	}
	var ie *Error
	if errors.As(err, &ie) {
		return &Error{Op: op, Ref: ref, Code: ie.Code, Err: ie.Err}
	}
	return &Error{Op: op, Ref: ref, Code: codeFor(err), Err: err}
}

// codeOf is the code that was given to err on its way up; empty if none was.
func codeOf(err error) Code {
	if err == nil {
		return ""
	}
	return codeFor(err)
}

func codeFor(err error) Code {
	var c *coded
	if errors.As(err, &c) {
		return c.code
	}
	if f := snapshot.FaultOf(err); f != "" {
		return unpackCodes[f]
	}
	var token remoteerrors.ErrUnexpectedStatus // of a token server
	if errors.As(err, &token) {
		return statusCode(token.StatusCode)
	}
	var status *statusError
	if errors.As(err, &status) {
		return statusCode(status.status)
	}
	var netErr net.Error
	var dnsErr *net.DNSError
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return CodeDiskFull
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return CodeUnauthorized
	case errors.Is(err, context.Canceled):
		return CodeCanceled
	case errors.As(err, &dnsErr), errors.As(err, &netErr), errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return CodeUnavailable
	case errdefs.IsNotFound(err):
		return CodeTagNotFound
	}
	return CodeHost
}

var unpackCodes = map[snapshot.Fault]Code{
	snapshot.FaultLayer: CodeBadImage, snapshot.FaultDigest: CodeBadImage,
	snapshot.FaultLimit: CodeLimit, snapshot.FaultMemory: CodeLimit,
	snapshot.FaultDisk: CodeDiskFull, snapshot.FaultHost: CodeHost,
}
