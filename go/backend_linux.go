package hvsock

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// useVsock says when the kernel's AF_VSOCK is used in place of a broker.
type useVsock int

const (
	vsockNever useVsock = iota
	vsockAlways
	vsockWithoutBroker
)

// perform does what a request asks, by the broker or by the kernel's AF_VSOCK.
func perform(ctx context.Context, r request) (result, error) {
	paths, vsock := endpoints(r.endpoint, os.Getenv, isForeign)
	if vsock == vsockAlways || vsock == vsockWithoutBroker && !anyMayExist(paths) && vsockAvailable() {
		return performVsock(ctx, r)
	}
	return performBroker(ctx, r, paths)
}

// endpoints returns the paths that a client tries, in order, and whether AF_VSOCK may take their place.
func endpoints(given string, getenv func(string) string, isForeign func(string) bool) ([]string, useVsock) {
	if given != "" {
		return []string{given}, vsockNever
	}
	if path := getenv("HVSOCK_ENDPOINT"); path == "vsock" {
		return nil, vsockAlways
	} else if path != "" {
		return []string{path}, vsockNever
	}
	if folder := getenv("HVSOCK_DIR"); folder != "" {
		return []string{filepath.Join(folder, "endpoint")}, vsockNever
	}
	var paths []string
	if runtime := getenv("XDG_RUNTIME_DIR"); runtime != "" {
		folder := filepath.Join(runtime, "hvsock")
		if !isForeign(runtime) && !isForeign(folder) {
			paths = append(paths, filepath.Join(folder, "endpoint"))
		}
	}
	return append(paths, "/run/hvsock/endpoint"), vsockWithoutBroker
}

// isForeign returns whether a folder belongs to a user other than root and this one: `sudo -E` and `su` pass
// the variable on that names it.
func isForeign(folder string) bool {
	info, err := os.Stat(folder)
	if err != nil {
		return false
	}
	status, ok := info.Sys().(*syscall.Stat_t)
	return ok && status.Uid != 0 && int(status.Uid) != os.Geteuid()
}

// anyMayExist returns whether one of the paths exists, or whether that cannot be determined.
func anyMayExist(paths []string) bool {
	for _, path := range paths {
		_, err := os.Lstat(path)
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return true
		}
	}
	return false
}
