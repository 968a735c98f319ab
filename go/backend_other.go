//go:build !linux && !windows

package hvsock

import "context"

func perform(context.Context, request) (result, error) { return result{}, ErrUnsupported }
