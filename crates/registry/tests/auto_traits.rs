//! Compile-time checks that public types are `Send` and `Sync`.

use hvsock_registry::reg_file::{Entry, Import, ImportError, ImportNote};
use hvsock_registry::{
    AccessRule, Action, Clash, Decision, Defaults, Override, Policy, Principal, Registration,
    Registry, Requester, Rule, UnknownService,
};

const fn assert_send_sync<T: Send + Sync>() {}

#[test]
fn public_types_are_send_and_sync() {
    const {
        assert_send_sync::<Registry>();
        assert_send_sync::<Registration>();
        assert_send_sync::<Defaults>();
        assert_send_sync::<Override>();
        assert_send_sync::<AccessRule>();
        assert_send_sync::<Principal>();
        assert_send_sync::<Requester<'_>>();
        assert_send_sync::<Policy<'_>>();
        assert_send_sync::<Decision<'_>>();
        assert_send_sync::<Rule<'_>>();
        assert_send_sync::<Action>();
        assert_send_sync::<Clash>();
        assert_send_sync::<UnknownService>();
        assert_send_sync::<Import>();
        assert_send_sync::<Entry>();
        assert_send_sync::<ImportNote>();
        assert_send_sync::<ImportError>();
    }
}

#[cfg(feature = "store")]
#[test]
fn the_types_of_keys_are_send_and_sync() {
    use hvsock_registry::keys::{
        KeyError, KeyLocation, KeyStep, LeaseHolder, Listing, ProcessState, RawKey, RawValue,
        Snapshot,
    };
    const {
        assert_send_sync::<KeyError>();
        assert_send_sync::<KeyLocation>();
        assert_send_sync::<KeyStep>();
        assert_send_sync::<LeaseHolder>();
        assert_send_sync::<Listing>();
        assert_send_sync::<ProcessState>();
        assert_send_sync::<RawKey>();
        assert_send_sync::<RawValue>();
        assert_send_sync::<Snapshot>();
    }
}

#[cfg(all(feature = "store", target_os = "linux"))]
#[test]
fn the_types_of_the_folder_store_are_send_and_sync() {
    use hvsock_registry::atomic_file::WriteError;
    use hvsock_registry::entry_folder::{Changed, FolderWatch};
    use hvsock_registry::folder::{Contents, Folder, FolderError, Stamp};
    use hvsock_registry::lock::{Lock, LockError, LockFile};
    use hvsock_registry::store::{
        Change, Entry, FolderStore, LoadReport, Loaded, Options, Problem, StoreError, Watch,
    };
    const {
        assert_send_sync::<FolderStore>();
        assert_send_sync::<Options>();
        assert_send_sync::<LoadReport>();
        assert_send_sync::<Change>();
        assert_send_sync::<Changed>();
        assert_send_sync::<Watch>();
        assert_send_sync::<StoreError>();
        assert_send_sync::<Folder>();
        assert_send_sync::<Contents>();
        assert_send_sync::<Stamp>();
        assert_send_sync::<FolderError>();
        assert_send_sync::<WriteError>();
        assert_send_sync::<Lock>();
        assert_send_sync::<LockFile>();
        assert_send_sync::<LockError>();
        assert_send_sync::<Problem>();
        assert_send_sync::<Loaded>();
        assert_send_sync::<Entry>();
        assert_send_sync::<FolderWatch>();
    }
}
