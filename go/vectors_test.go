package hvsock

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// The test vectors of the repository, which every client runs (docs/vectors/README.md).

type row map[string]any

func (r row) text(key string) string {
	text, _ := r[key].(string)
	return text
}

func (r row) number(key string) uint32 {
	number, _ := r[key].(float64)
	return uint32(number)
}

// long reads a number of 64 bits, which is text.
func (r row) long(key string) uint64 {
	number, _ := strconv.ParseUint(r.text(key), 10, 64)
	return number
}

func (r row) object(key string) row {
	object, _ := r[key].(map[string]any)
	return object
}

func (r row) guid(t *testing.T, key string) GUID {
	t.Helper()
	id, err := FromString(r.text(key))
	if err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	return id
}

func (r row) bytes(t *testing.T) []byte {
	t.Helper()
	bytes, err := hex.DecodeString(r.text("bytes"))
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

// vectors returns the sections of a file.
func vectors(t *testing.T, name string) func(section string) []row {
	t.Helper()
	path := filepath.Join("..", "docs", "vectors", name)
	content, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("skipped: the module is not in its repository, which has the vectors")
	}
	if err != nil {
		t.Fatal(err)
	}
	var file map[string]json.RawMessage
	if err := json.Unmarshal(content, &file); err != nil {
		t.Fatal(err)
	}
	return func(section string) []row {
		t.Helper()
		var rows []row
		if err := json.Unmarshal(file[section], &rows); err != nil || len(rows) == 0 {
			t.Fatalf("%s has no %s: %v", name, section, err)
		}
		return rows
	}
}

func TestEveryVectorOfAGUIDHolds(t *testing.T) {
	section := vectors(t, "addresses.json")
	for _, row := range section("guids") {
		id, err := FromString(row.text("text"))
		array := id.ToWindowsArray()
		if err != nil || id.String() != row.text("guid") || hex.EncodeToString(array[:]) != row.text("bytes") {
			t.Errorf("%v: %v %v %x", row, id, err, array)
		}
		if FromWindowsArray(array) != id || FromArray(id.ToArray()) != id {
			t.Errorf("%v: the bytes are those of another", id)
		}
	}
	for _, row := range section("invalid_guids") {
		if id, err := FromString(row.text("text")); err == nil {
			t.Errorf("%q is %v", row.text("text"), id)
		}
	}
	for _, row := range section("well_known") {
		id, ok := wordID(row.text("word"))
		if !ok || id != row.guid(t, "guid") {
			t.Errorf("%v: %v", row, id)
		}
	}
	for _, row := range section("vsock_ports") {
		id := VsockServiceID(row.number("port"))
		if port, ok := id.VsockPort(); id != row.guid(t, "service") || !ok || port != row.number("port") {
			t.Errorf("%v: %v %d", row, id, port)
		}
	}
	for _, row := range section("vsock_aliases") {
		id := row.guid(t, "service")
		if alias, ok := id.VsockAlias(); !ok || alias != row.number("alias") {
			t.Errorf("%v: %d", row, alias)
		}
		if port, ok := id.VsockPort(); ok {
			t.Errorf("%v is on the template, at port %d", id, port)
		}
	}
	for _, row := range section("containers") {
		if id := ContainerVMID(row.text("runtime_id")); id != row.guid(t, "vm_id") {
			t.Errorf("%v: %v", row, id)
		}
	}
	for _, row := range section("nested_containers") {
		if id := NestedVMID(row.guid(t, "vm"), row.guid(t, "container")); id != row.guid(t, "vm_id") {
			t.Errorf("%v: %v", row, id)
		}
	}
}

func TestEveryVectorOfANameHolds(t *testing.T) {
	section := vectors(t, "addresses.json")
	kinds := []struct {
		name  string
		parse func(string) (GUID, string, error)
		show  func(GUID, string) string
	}{
		{"partitions", parsePartition, func(id GUID, name string) string {
			return Address{VMID: id, Partition: name}.partitionText()
		}},
		{"services", parseService, func(id GUID, name string) string {
			return Address{ServiceID: id, Service: name}.serviceText()
		}},
	}
	for _, kind := range kinds {
		for _, row := range section(kind.name) {
			id, name, err := kind.parse(row.text("text"))
			if err != nil || name != row.text("name") || name == "" && id != row.guid(t, "guid") {
				t.Errorf("%v: %v %q %v", row, id, name, err)
			}
			if shown := kind.show(id, name); shown != row.text("display") {
				t.Errorf("%v is shown as %q", row, shown)
			}
		}
		for _, row := range section("invalid_" + kind.name) {
			_, _, err := kind.parse(row.text("text"))
			var invalid *InvalidNameError
			if !errors.As(err, &invalid) || invalid.kind != row.text("error") {
				t.Errorf("%v: %v", row, err)
			}
		}
	}
}

func TestEveryVectorOfAURLHolds(t *testing.T) {
	section := vectors(t, "addresses.json")
	for _, row := range section("urls") {
		address, err := ParseAddress(row.text("text"))
		if err != nil || address.String() != row.text("display") {
			t.Errorf("%v: %v %v", row, address, err)
		}
		partition, service := row.object("partition"), row.object("service")
		if address.Partition != partition.text("name") || address.Service != service.text("name") {
			t.Errorf("%v: %+v", row, address)
		}
		if address.Partition == "" && address.VMID != partition.guid(t, "guid") {
			t.Errorf("%v: %v", row, address.VMID)
		}
		if address.Service == "" && address.ServiceID != service.guid(t, "guid") {
			t.Errorf("%v: %v", row, address.ServiceID)
		}
	}
	faults := map[string]error{"scheme": errScheme, "no_service": errNoService, "encoding": errEncoding}
	for _, row := range section("invalid_urls") {
		_, err := ParseAddress(row.text("text"))
		var invalid *InvalidNameError
		isPart := errors.As(err, &invalid)
		if want := row.text("error"); err == nil || isPart != (want == "part") || !isPart && err != faults[want] {
			t.Errorf("%v: %v", row, err)
		}
	}
}

func TestEveryVectorOfASockaddrHvHolds(t *testing.T) {
	section := vectors(t, "addresses.json")
	for _, row := range section("sockaddr_hv") {
		addr := HvsockAddr{VMID: row.guid(t, "vm"), ServiceID: row.guid(t, "service")}
		bytes, err := addr.MarshalBinary()
		// This package has no flags.
		want := row.bytes(t)
		want[2], want[3] = 0, 0
		if err != nil || string(bytes) != string(want) {
			t.Errorf("%v: %x %v", row, bytes, err)
		}
		var read HvsockAddr
		if err := read.UnmarshalBinary(row.bytes(t)); err != nil || read != addr {
			t.Errorf("%v: %v %v", row, read, err)
		}
	}
	for _, row := range section("invalid_sockaddr_hv") {
		if err := new(HvsockAddr).UnmarshalBinary(row.bytes(t)); err == nil {
			t.Errorf("%v is an address", row)
		}
	}
}

func TestEveryVectorOfARefusalHolds(t *testing.T) {
	section := vectors(t, "refusals.json")
	rows := section("refusals")
	if len(rows) != len(codes) {
		t.Errorf("there are %d refusals, and %d here", len(rows), len(codes))
	}
	for _, row := range rows {
		refused := newRefused(row.number("code"), row.text("detail"))
		if refused.Label != row.text("label") || refused.WSA() != int(row.number("wsa")) ||
			refused.Error() != row.text("text") {
			t.Errorf("%v: %v %v %v", row, refused.Label, refused.WSA(), refused)
		}
		if !errors.Is(refused, refused.Errno) || !errors.Is(refused, Code(row.number("code"))) {
			t.Errorf("%v does not match its numbers", refused)
		}
		checkErrno(t, row.number("errno"), refused)
	}
	for _, row := range section("unknown") {
		refused := newRefused(row.number("code"), row.text("detail"))
		if refused.Code != Reset || refused.Detail != row.text("cause") {
			t.Errorf("%v: %v", row, refused)
		}
	}
}

func TestEveryVectorOfAnExplanationHolds(t *testing.T) {
	for _, row := range vectors(t, "explanations.json")("explanations") {
		explanation := parseExplanation(uint32(Disabled), row.text("text"))
		if detail := explanation.Refusal.Detail; detail != row.text("detail") {
			t.Errorf("%v: the detail is %q", row["name"], detail)
		}
		checkFix(t, row, explanation.Fix)
		steps, _ := row["steps"].([]any)
		if len(steps) != len(explanation.Checks) {
			t.Fatalf("%v: %d checks", row["name"], len(explanation.Checks))
		}
		for i, step := range steps {
			want, check := asRow(step), explanation.Checks[i]
			pass, _ := want["pass"].(bool)
			got := []string{check.Name, check.Subject, check.Rule, check.Question, check.Answer}
			for at, key := range []string{"check", "subject", "rule", "question", "answer"} {
				if got[at] != want.text(key) || check.Passed != pass {
					t.Errorf("%v: %+v", row["name"], check)
				}
			}
		}
	}
}

func asRow(value any) row {
	object, _ := value.(map[string]any)
	return object
}

func checkFix(t *testing.T, row row, fix *Fix) {
	t.Helper()
	want := row.object("fix")
	if want == nil || fix == nil {
		if want != nil || fix != nil {
			t.Errorf("%v: %+v", row["name"], fix)
		}
		return
	}
	if fix.Kind != want.text("kind") || fix.Text != want.text("text") || len(fix.Data) != len(want.object("data")) {
		t.Errorf("%v: %+v", row["name"], fix)
	}
	for key := range want.object("data") {
		if fix.Data[key] != want.object("data").text(key) {
			t.Errorf("%v: %s is %q", row["name"], key, fix.Data[key])
		}
	}
}

// encodeRow encodes a message to the broker, also one that this package never sends.
func encodeRow(t *testing.T, kind string, fields row) []byte {
	requests := map[string]byte{"CONNECT": kindConnect, "LISTEN": kindListen,
		"CONNECT_NAMED": kindConnectNamed, "LISTEN_NAMED": kindListenNamed}
	switch kind {
	case "LOOKUP":
		return encodeLookup(fields.number("what"), fields.text("name"))
	case "SET_OPTION":
		return encodeSetOption(fields.number("option"), fields.number("value"))
	case "CONNECT", "LISTEN", "CONNECT_NAMED", "LISTEN_NAMED":
		number := fields.number("timeout")
		if strings.HasPrefix(kind, "LISTEN") {
			number = fields.number("backlog")
		}
		return encodeRequest(requests[kind], uint16(fields.number("flags")), number, fields.number("transports"), Address{
			VMID:      fields.guid(t, "vm"),
			Partition: fields.text("partition_name"),
			ServiceID: fields.guid(t, "service"),
			Service:   fields.text("service_name"),
		})
	case "REGISTER":
		return encodeRegister(fields.guid(t, "service"), fields.text("name"), fields.text("purpose"))
	case "ACCEPTED":
		return encodeAccepted(fields.long("connection"))
	case "SHUTDOWN":
		return header(kindShutdown, 0)
	case "DESCRIBE":
		return encodeDescribe(fields.text("action"), fields.text("detail"))
	case "ARENA_CHANGED":
		return header(0x0b, 0)
	case "ARENA_GROW":
		return header(0x0c, 0)
	case "CID_OF":
		id := fields.guid(t, "vm").ToWindowsArray()
		return append(header(0x0d, 0), id[:]...)
	case "ATTACH":
		return appendNumber(header(0x0e, 0), fields.number("filler"))
	}
	t.Fatalf("there is a message %s", kind)
	return nil
}

var kindsByName = map[string]byte{
	"FOUND": kindFound, "CONNECTED": kindConnected, "LISTENING": kindListening, "REGISTERED": kindRegistered,
	"INCOMING": kindIncoming, "REFUSED": kindRefused, "SHUTDOWN": kindEnded, "RESET": kindReset,
	"EXPLAINED": kindExplained, "SUSPENDED": kindSuspended, "BOUND": kindBound, "STREAM_RESET": kindStreamReset,
	"CID": kindCID, "ATTACHABLE": kindAttachable,
}

// expected returns the message from the broker with the fields of a row.
func expected(t *testing.T, kind string, fields row) brokerMessage {
	message := brokerMessage{
		kind: kindsByName[kind], transport: fields.number("transport"), connection: fields.long("connection"),
		backlog: fields.number("backlog"), listener: fields.long("listener"), pid: fields.number("pid"),
		uid: fields.number("uid"), gid: fields.number("gid"), suspended: fields.number("suspended") == 1,
		slot: fields.number("slot"), seq: fields.number("seq"), cid: fields.number("cid"),
		code: fields.number("code"), errno: fields.number("errno"),
		text: fields.text("detail") + fields.text("partition"),
	}
	for key, id := range map[string]*GUID{
		"guid": &message.guid, "vm": &message.address.VMID, "service": &message.address.ServiceID,
		"local_vm": &message.local.VMID, "local_service": &message.local.ServiceID,
		"peer_vm": &message.peer.VMID, "peer_service": &message.peer.ServiceID,
	} {
		if fields[key] != nil {
			*id = fields.guid(t, key)
		}
	}
	return message
}

func TestEveryVectorOfAMessageHolds(t *testing.T) {
	section := vectors(t, "messages.json")
	for _, row := range section("to_broker") {
		bytes := encodeRow(t, row.text("kind"), row.object("fields"))
		if hex.EncodeToString(bytes) != row.text("bytes") {
			t.Errorf("%s, %s: %x", row.text("kind"), row.text("name"), bytes)
		}
	}
	for _, row := range section("from_broker") {
		message, err := decode(row.bytes(t))
		want := expected(t, row.text("kind"), row.object("fields"))
		if err != nil || message != want {
			t.Errorf("%s, %s: %+v %v", row.text("kind"), row.text("name"), message, err)
		}
	}
	for _, row := range section("malformed") {
		if row.text("direction") != "from_broker" {
			continue
		}
		if message, err := decode(row.bytes(t)); err == nil {
			t.Errorf("%s: %+v", row.text("name"), message)
		}
	}
}

func TestTextThatIsTooLongEndsAtABoundaryOfCharacters(t *testing.T) {
	long := strings.Repeat("中", maxMessage)
	bytes := encodeLookup(lookupService, long)
	if len(bytes) > maxMessage || len(bytes) < maxMessage-3 || !strings.HasPrefix(long, string(bytes[8:])) {
		t.Errorf("%d bytes", len(bytes))
	}
}

func TestARefusalOfABrokerOfAnotherVersionHasItsReason(t *testing.T) {
	bytes := append([]byte{2, kindRefused, 0xff, 0xff, 17, 0, 0, 0, 104, 0, 0, 0}, "version 1 is too old"...)
	message, err := decodeAnyVersion(bytes)
	if err != nil || message.code != uint32(Reset) || message.text != "version 1 is too old" {
		t.Errorf("%+v %v", message, err)
	}
	bytes[1] = kindFound
	if _, err := decodeAnyVersion(bytes); err == nil {
		t.Error("a message of another version is understood")
	}
}
