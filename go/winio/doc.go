// Package winio makes hvsock.dev/go use the Hyper-V sockets of Microsoft's go-winio on Windows. Import it for that
// effect:
//
//	import _ "hvsock.dev/go/winio"
//
// On other systems it does nothing.
package winio
