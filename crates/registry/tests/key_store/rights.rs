//! Keys that this user may not write to, or not even read.

use hvsock_registry::key_store::KeyError;
use hvsock_sys::rights;

use super::*;

/// Lets everybody do what these rights say, and nothing else, if there is such a key.
fn allow(path: &str, allowed: &str) {
    const WRITE_DAC: u32 = 0x4_0000;
    let mut options = LOCAL_MACHINE.options();
    let Ok(key) = options.access(VIEW | WRITE_DAC).open(path) else {
        return;
    };
    rights::set(&key, &format!("D:P(A;;{allowed};;;WD)")).expect("the rights are set");
}

/// Puts the rights back, so that the key can be removed.
struct Restored(String);

impl Drop for Restored {
    fn drop(&mut self) {
        allow(&self.0, "KA");
    }
}

/// Reading, and changing the rights.
const READ_ONLY: &str = "KRWD";
/// Changing the rights and nothing else.
const NOTHING: &str = "WD";

#[test]
fn without_the_right_to_write_everything_can_be_read_and_the_next_step_is_named() {
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
    // Wine lets anybody remove a key, so that is asked of Windows only.
    const DELETE: u32 = 0x1_0000;
    let mut options = LOCAL_MACHINE.options();
    if options.access(VIEW | DELETE).open(&key).is_err() {
        denied.push(("remove", store.remove(service.id)));
    }
    for (what, denied) in denied {
        let said = match denied {
            Err(error @ KeyError::Denied { .. }) => error.to_string(),
            other => panic!("{what}: {other:?}"),
        };
        let key = format!(r"access to HKEY_LOCAL_MACHINE\{}", scratch.path);
        assert!(
            said.starts_with(&key) && said.contains("administrator"),
            "{said}"
        );
    }
    // What is wrong with the change itself comes first.
    assert!(matches!(
        store.put(&new_service("MINE")),
        Err(KeyError::Clash(_))
    ));
    assert_eq!(scratch.read(), before);
}

#[test]
fn a_service_that_may_not_be_read_is_a_problem_and_keeps_its_id() {
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
