//! Interoperability with Wine's registry editor: it imports an exported file, and its own export
//! imports as the same registrations.

#![cfg(target_os = "linux")]

use hvsock_address::{ElementName, ServiceId};
use hvsock_registry::Registration;
use hvsock_registry::reg_file::{Entry, KEY, export, import};
use hvsock_testkit::wine::Wine;

#[test]
fn wines_registry_editor_imports_and_exports_the_file() {
    let Some(wine) = Wine::new() else { return };
    let registration =
        |port, name| Registration::new(ServiceId::from_port(port), ElementName::new(name).unwrap());
    let mut demo = registration(2761, "HV \"Socket\" \\ Demo ; é ] 漢 😀");
    demo.owner = Some("CORP\\alice\\".to_owned());
    demo.purpose = Some("[x]=\"y\"".to_owned());
    let all = [registration(1, "One"), demo];
    std::fs::write(wine.folder().join("out.reg"), export(&all)).unwrap();
    let edit = |arguments: &[&str]| {
        let output = wine.run("regedit", arguments).unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    edit(&["/S", "out.reg"]);
    edit(&["/E", "back.reg", KEY]);
    let back = std::fs::read(wine.folder().join("back.reg")).unwrap();
    let import = import(&back).unwrap();
    assert!(import.notes.is_empty(), "{import:#?}");
    let back = import.entries.iter().map(|entry| match entry {
        Entry::Register { registration, .. } => registration.as_ref(),
        Entry::Unregister { .. } => panic!("{entry:?}"),
    });
    assert!(back.eq(&all), "{import:#?}");
}
