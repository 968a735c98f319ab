//! TOML files of an operator: registrations with their access rules, the defaults, partitions.

use hvsock_broker::fuzzing as broker;
use hvsock_registry::fuzzing as registry;

use crate::target::Seed;

/// Decodes the rest as the file that the first byte chooses.
pub(crate) fn run(bytes: &[u8]) {
    let Some((kind, text)) = bytes.split_first() else {
        return;
    };
    match kind % 3 {
        0 => registry::service_file(text),
        1 => registry::defaults_file(text),
        _ => broker::partition_file(text),
    }
}

/// Files with every key.
pub(crate) fn seeds() -> Vec<Seed> {
    let seed = |kind: u8, text: &str| [&[kind], text.as_bytes()].concat();
    super::named([
        ("service-name", seed(0, "name = \"Demo\"\n")),
        (
            "service",
            seed(
                0,
                "# Demo\nname = \"HV \\u00fcber\"\nenabled = false\nallow_wildcard_binds = true\nonly_root_binds = false\n\
                 transport = \"direct\"\nowner = \"root\"\ncreator = \"hvsock\"\npurpose = \"x\"\n\
                 [bind]\nusers = [0, \"root\"]\ngroups = [\"wheel\"]\npartitions = [\"*\", \"web\"]\n\
                 [connect]\npartitions = []\n[vm.web]\nenabled = true\n",
            ),
        ),
        (
            "service-inline",
            seed(
                0,
                "name = 'a'\nbind = { partitions = ['parent'] }\nvm = { 'web' = { enabled = false } }\n",
            ),
        ),
        (
            "defaults",
            seed(
                1,
                "allow_wildcard_binds = false\nonly_root_binds = true\ntransport = \"ring\"\n[bind]\nusers = [0]\n[connect]\npartitions = [\"*\"]\n",
            ),
        ),
        (
            "container",
            seed(
                2,
                "kind = \"container\"\ngroups = [\"a\", \"b\"]\ncdi = true\n",
            ),
        ),
        (
            "vm",
            seed(
                2,
                "kind = \"vm\"\nid = \"0b2f1f0e-0000-4000-8000-000000000001\"\ncid = 42\ngroups = []\nunsealed_memory = true\nuser = \"root\"\n",
            ),
        ),
        (
            "vm-hybrid",
            seed(
                2,
                "kind = \"vm\"\n[link]\nkind = \"hybrid\"\npath = \"/run/vm.sock\"\n",
            ),
        ),
    ])
}
