//! Keys that this user may not write to, or not even read.

#![allow(
    unsafe_code,
    reason = "only the system's own calls set who may do what to a key"
)]

use std::ptr::null_mut;

use hvsock_registry::key_store::KeyError;
use windows_sys::Win32::Foundation::LocalFree;
use windows_sys::Win32::Security::Authorization::{
    ConvertStringSecurityDescriptorToSecurityDescriptorW, SDDL_REVISION_1,
};
use windows_sys::Win32::Security::DACL_SECURITY_INFORMATION;
use windows_sys::Win32::System::Registry::RegSetKeySecurity;

use super::*;

/// Lets everybody do what these rights say, and nothing else, if there is such a key.
fn allow(path: &str, rights: &str) {
    const WRITE_DAC: u32 = 0x4_0000;
    let mut options = LOCAL_MACHINE.options();
    let Ok(key) = options.access(VIEW | WRITE_DAC).open(path) else {
        return;
    };
    let sddl = format!("D:P(A;;{rights};;;WD)");
    let sddl: Vec<u16> = sddl.encode_utf16().chain([0]).collect();
    let mut descriptor = null_mut();
    // SAFETY: the text ends in a zero; what is given is freed below.
    let made = unsafe {
        ConvertStringSecurityDescriptorToSecurityDescriptorW(
            sddl.as_ptr(),
            SDDL_REVISION_1,
            &mut descriptor,
            null_mut(),
        )
    };
    assert_ne!(made, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the key is open, and the descriptor is the one just made.
    let status = unsafe { RegSetKeySecurity(key.as_raw(), DACL_SECURITY_INFORMATION, descriptor) };
    // SAFETY: the system has made it for the caller to free, and nobody has it any more.
    unsafe { LocalFree(descriptor) };
    assert_eq!(status, 0);
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
