//! Files of the registry editor. What is exported is imported as the same registrations.

use hvsock_registry::reg_file::{self, Entry};

use crate::target::Seed;

/// Imports a file, and exports what it registers.
pub(crate) fn run(bytes: &[u8]) {
    let Ok(import) = reg_file::import(bytes) else {
        return;
    };
    let registrations = import.entries.into_iter().filter_map(|entry| match entry {
        Entry::Register { registration, .. } => Some(*registration),
        Entry::Unregister { .. } => None,
    });
    let registrations: Vec<_> = registrations.collect();
    let again = reg_file::import(&reg_file::export(&registrations)).map(|import| import.entries);
    let again: Vec<_> = again
        .unwrap_or_default()
        .into_iter()
        .filter_map(|entry| match entry {
            Entry::Register { registration, .. } => Some((registration.id, registration.name)),
            Entry::Unregister { .. } => None,
        })
        .collect();
    let names: Vec<_> = registrations
        .iter()
        .map(|one| (one.id, one.name.clone()))
        .collect();
    assert_eq!(again, names);
}

/// Files as `regedit` and people write them, in each encoding.
pub(crate) fn seeds() -> Vec<Seed> {
    let key = reg_file::KEY;
    let disabled = reg_file::DISABLED_KEY;
    let text = format!(
        "Windows Registry Editor Version 5.00\r\n\r\n[{key}]\r\n\r\n\
         [{key}\\00000ac9-facb-11e6-bd58-64006a7986d3]\r\n\"ElementName\"=\"HV Socket \\\"Demo\\\"\"\r\n\
         \"AllowWildcardBinds\"=dword:00000001\r\n\"Bind\"=hex(7):61,00,00,00,\\\r\n  00,00\r\n; comment\r\n\
         @=\"x\"\r\n\"Gone\"=-\r\n\r\n[-{key}\\999e53d4-3d5c-4c3e-8779-bed06ec056e1]\r\n\
         [{disabled}\\00000007-facb-11e6-bd58-64006a7986d3]\r\n\"ElementName\"=hex(2):61,00,00,00\r\n"
    );
    let version_4 = text.replace("Windows Registry Editor Version 5.00", "REGEDIT4");
    let wide = text.encode_utf16().flat_map(u16::to_le_bytes);
    let wide: Vec<u8> = [0xff, 0xfe].into_iter().chain(wide).collect();
    super::named([
        ("text", text.clone().into_bytes()),
        ("utf16", wide),
        ("version4", version_4.into_bytes()),
        ("marked", [b"\xef\xbb\xbf", text.as_bytes()].concat()),
        (
            "windows1252",
            b"REGEDIT4\n\n[HKEY_LOCAL_MACHINE\\\xfc]\n\"a\"=\"\xe9\"\n".to_vec(),
        ),
    ])
}
