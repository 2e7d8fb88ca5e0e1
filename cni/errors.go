package cni

import (
	"errors"
	"fmt"
)

// Code classifies an Error for the machine.
type Code int

// The codes.
const (
	Internal    Code = iota // anything else
	NotReady                // no usable network configuration, or a plugin's STATUS says no
	Missing                 // a plugin's program is not installed
	Exhausted               // no address left
	Timeout                 // the plugin did not answer within its deadline: it may have acted
	BadAnswer               // the plugin's answer is not one
	InvalidConf             // a conflist cannot be used
)

// Error is a failed network operation.
type Error struct {
	Code Code
	Op   string // "ADD", "DEL", "CHECK", ...
	Err  error
}

func (e *Error) Error() string { return fmt.Sprintf("CNI %s: %v", e.Op, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// CodeOf returns the Code of the first *Error in err's chain, else Internal.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Internal
}
