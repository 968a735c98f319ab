//go:build !linux

package hvsock

import "testing"

func checkErrno(*testing.T, uint32, *RefusedError) {}
