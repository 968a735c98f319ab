// Package guid has go-winio's type of a GUID.
package guid

// GUID has the fields of windows.GUID.
type GUID struct {
	Data1 uint32
	Data2 uint16
	Data3 uint16
	Data4 [8]byte
}
