//! Keys without write or read access.

use hvsock_registry::key_store::KeyError;
use hvsock_sys::rights;

use super::*;

/// Sets the access rights of everyone on a key, if it exists.
fn allow(path: &str, allowed: &str) {
    const WRITE_DAC: u32 = 0x4_0000;
    let mut options = LOCAL_MACHINE.options();
    let Ok(key) = options.access(VIEW | WRITE_DAC).open(path) else {
        return;
    };
    rights::set(&key, &format!("D:P(A;;{allowed};;;WD)")).expect("the rights are set");
}

/// Restores full access on drop, so that the key can be deleted.
struct Restored(String);

impl Drop for Restored {
    fn drop(&mut self) {
        allow(&self.0, "KA");
    }
}

/// Reading and changing the access rights.
const READ_ONLY: &str = "KRWD";
/// Changing the access rights only.
const NOTHING: &str = "WD";

#[test]
fn without_write_access_everything_is_readable_and_writes_are_denied() {
    let scratch = Scratch::new();
    let service = new_service("Mine");
    scratch.store().put(&service).unwrap();
    let key = format!(r"{}\{}", scratch.services(), service.id);
    let _restored = [key.clone(), scratch.services(), scratch.disabled()].map(|path| {
        drop(create(&path));
        allow(&path, READ_ONLY);
        Restored(path)
    });

    let before = scratch.read();
    assert_eq!(before.registry.get(service.id), Some(&service));
    let mut store = scratch.store();
    let renamed = Registration {
        name: ElementName::new("Other").unwrap(),
        ..service.clone()
    };
    let mut denied = vec![
        ("put", store.put(&new_service("Another"))),
        ("replace", store.replace(&renamed)),
        ("disable", store.set_enabled(service.id, false)),
    ];
    // Wine lets every user delete a key, so this is tested on Windows only.
    const DELETE: u32 = 0x1_0000;
    let mut options = LOCAL_MACHINE.options();
    if options.access(VIEW | DELETE).open(&key).is_err() {
        denied.push(("remove", store.remove(service.id)));
    }
    for (what, denied) in denied {
        let message = match denied {
            Err(error @ KeyError::Denied { .. }) => error.to_string(),
            other => panic!("{what}: {other:?}"),
        };
        let key = format!(r"access to HKEY_LOCAL_MACHINE\{}", scratch.path);
        assert!(
            message.starts_with(&key) && message.contains("administrator"),
            "{message}"
        );
    }
    // An invalid change is reported before the lack of access.
    assert!(matches!(
        store.put(&new_service("MINE")),
        Err(KeyError::Clash(_))
    ));
    assert_eq!(scratch.read(), before);
}

#[test]
fn an_unreadable_service_is_reported_and_keeps_its_id() {
    let scratch = Scratch::new();
    let service = new_service("Secret");
    scratch.store().put(&service).unwrap();
    scratch.store().put(&new_service("Open")).unwrap();
    let path = format!(r"{}\{}", scratch.services(), service.id);
    allow(&path, NOTHING);
    let _restored = Restored(path);
    let listing = scratch.read();
    assert_eq!(listing.registry.len(), 2);
    assert!(
        listing.problems[0].contains("cannot be read"),
        "{:?}",
        listing.problems
    );
    let taken = scratch.store().put(&service);
    assert!(matches!(taken, Err(KeyError::Clash(_))), "{taken:?}");
}
