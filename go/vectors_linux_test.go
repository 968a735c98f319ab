package hvsock

import (
	"os"
	"reflect"
	"syscall"
	"testing"
)

// checkErrno checks the error number of a refusal, which vectors have as Linux's.
func checkErrno(t *testing.T, want uint32, refused *RefusedError) {
	t.Helper()
	if refused.Errno != syscall.Errno(want) {
		t.Errorf("%v has the error number %d", refused, refused.Errno)
	}
}

func TestEveryVectorOfAnEndpointHolds(t *testing.T) {
	uses := map[string]useVsock{"never": vsockNever, "always": vsockAlways, "without_broker": vsockWithoutBroker}
	for _, row := range vectors(t, "endpoints.json")("endpoints") {
		env := row.object("env")
		paths, use := endpoints("", env.text, func(string) bool { return false })
		var want []string
		list, _ := row["paths"].([]any)
		for _, path := range list {
			want = append(want, path.(string))
		}
		if !reflect.DeepEqual(paths, want) || use != uses[row.text("vsock")] {
			t.Errorf("%v: %v %v", row["name"], paths, use)
		}
	}
}

func TestTheRuntimeFolderOfAnotherUserIsNotTried(t *testing.T) {
	env := row{"XDG_RUNTIME_DIR": "/run/user/1000"}
	paths, _ := endpoints("", env.text, func(folder string) bool { return folder == "/run/user/1000/hvsock" })
	if want := []string{"/run/hvsock/endpoint"}; !reflect.DeepEqual(paths, want) {
		t.Errorf("%v", paths)
	}
	if isForeign(t.TempDir()) || isForeign("/no/such/folder") {
		t.Error("a folder of this user, or none, is another user's")
	}
	if os.Geteuid() == 0 {
		folder := t.TempDir()
		if err := os.Chown(folder, 4711, 4711); err != nil || !isForeign(folder) {
			t.Errorf("a folder of another user is this one's: %v", err)
		}
	}
}
