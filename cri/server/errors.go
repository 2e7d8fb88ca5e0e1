package server

import (
	"context"
	"errors"
	"strings"

	"github.com/berthd/berth/cri/image"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// classes pairs kinds of errors with codes; the first that fits decides, so
// that a deadline is told as such, whatever it made fail.
var classes = []struct {
	err  error
	code codes.Code
}{
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
	{errdefs.ErrNotFound, codes.NotFound},
	{errdefs.ErrAlreadyExists, codes.AlreadyExists},
	{errdefs.ErrInvalidArgument, codes.InvalidArgument},
	{errdefs.ErrOutOfRange, codes.OutOfRange},
	{errdefs.ErrFailedPrecondition, codes.FailedPrecondition},
	{errdefs.ErrResourceExhausted, codes.ResourceExhausted},
	{unix.ENOSPC, codes.ResourceExhausted},
	{unix.EDQUOT, codes.ResourceExhausted},
	{errdefs.ErrPermissionDenied, codes.PermissionDenied},
	{errdefs.ErrUnauthenticated, codes.Unauthenticated},
	{errdefs.ErrUnavailable, codes.Unavailable},
	{errdefs.ErrAborted, codes.Aborted},
	{errdefs.ErrDataLoss, codes.DataLoss},
	{errdefs.ErrNotImplemented, codes.Unimplemented},
	{errdefs.ErrInternal, codes.Internal},
}

// grpcError is the only place where errors become codes. One that fits no kind
// is Unknown: the host refused something.
func grpcError(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return err
	}
	code, text := codes.Unknown, strings.ToValidUTF8(err.Error(), "?")
	for _, c := range classes {
		if errors.Is(err, c.err) {
			code = c.code
			break
		}
	}
	switch image.CodeOf(err) {
	case image.CodeUnavailable, image.CodeStalled:
		text = "RegistryUnavailable: " + text // the word by which CRI tells it from other failures
	case image.CodeBadImage:
		code = codes.FailedPrecondition // the reference is valid: InvalidArgument would blame it
	}
	return status.Error(code, text)
}
