//! Edits a handwritten file: changes only the differing values, and keeps comments, order and spelling.

use std::path::Path;

use toml_edit::{DocumentMut, Item, TableLike};

use super::format;
use crate::Registration;
use crate::toml_problem::{self, FileProblem};

/// The kind of a table. The meaning of a key depends on its table.
#[derive(Clone, Copy, PartialEq)]
enum Level {
    /// The file itself.
    Registration,
    /// `[vm]`, whose keys are partition names.
    Overrides,
    /// `[vm.NAME]`.
    Override,
    /// `[bind]` or `[connect]`.
    Rule,
}

/// Edits `bytes`, a file with an earlier state of this registration, to contain its new state.
pub(super) fn edit(
    path: &Path,
    bytes: &[u8],
    registration: &Registration,
) -> Result<String, FileProblem> {
    let text = toml_problem::text(path, bytes)?;
    let mut document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| {
        let at = error.span().map_or(0, |span| span.start);
        FileProblem::at(path, text, at, error.message())
    })?;
    let wanted = format::document(registration);
    merge(
        document.as_table_mut(),
        wanted.as_table(),
        Level::Registration,
    );
    Ok(document.to_string())
}

/// Edits the table `have` to be equivalent to `want`.
fn merge(have: &mut dyn TableLike, want: &dyn TableLike, level: Level) {
    let gone: Vec<String> = have
        .iter()
        .filter(|(key, item)| level.find(want, key).is_none() && !level.may_stay(key, item))
        .map(|(key, _)| key.to_owned())
        .collect();
    for key in gone {
        have.remove(&key);
    }
    for (key, wanted) in want.iter() {
        let Some(item) = level.find(have, key).and_then(|key| have.get_mut(&key)) else {
            // `enabled = true` is the default, so do not add it.
            if (level, key, wanted.as_bool()) != (Level::Registration, "enabled", Some(true)) {
                have.insert(key, wanted.clone());
            }
            continue;
        };
        match (item.as_table_like_mut(), wanted.as_table_like()) {
            (Some(have), Some(want)) => merge(have, want, level.below(key)),
            _ => replace(item, wanted),
        }
    }
}

impl Level {
    /// The level of the table under `key`.
    fn below(self, key: &str) -> Level {
        match (self, key) {
            (Level::Registration, "vm") => Level::Overrides,
            (Level::Overrides, _) => Level::Override,
            _ => Level::Rule,
        }
    }

    /// The key of `table` that is equivalent to `key`. Partition names are compared ignoring case.
    fn find(self, table: &dyn TableLike, key: &str) -> Option<String> {
        let same = |other: &str| match self {
            Level::Overrides => other.eq_ignore_ascii_case(key),
            _ => other == key,
        };
        table
            .iter()
            .map(|(other, _)| other)
            .find(|other| same(other))
            .map(str::to_owned)
    }

    /// Whether an unwanted item is an empty table, so that it can stay with its comments.
    fn may_stay(self, key: &str, item: &Item) -> bool {
        let optional = match self {
            Level::Registration => ["bind", "connect", "vm"].contains(&key),
            Level::Override => ["bind", "connect"].contains(&key),
            Level::Overrides | Level::Rule => false,
        };
        optional && item.as_table_like().is_some_and(TableLike::is_empty)
    }
}

/// Whether two values are equal, regardless of their spelling.
fn same(a: &Item, b: &Item) -> bool {
    let list = |item: &Item| -> Option<Vec<String>> {
        let array = item.as_array()?.iter();
        array.map(|v| v.as_str().map(str::to_owned)).collect()
    };
    match (a.as_bool(), b.as_bool(), a.as_str(), b.as_str()) {
        (Some(a), Some(b), ..) => a == b,
        (_, _, Some(a), Some(b)) => a == b,
        _ => list(a).is_some() && list(a) == list(b),
    }
}

/// Replaces a value that differs, and keeps the surrounding whitespace and comments.
fn replace(item: &mut Item, wanted: &Item) {
    if same(item, wanted) {
        return;
    }
    let decor = item.as_value().map(|value| value.decor().clone());
    *item = wanted.clone();
    if let (Some(decor), Some(value)) = (decor, item.as_value_mut()) {
        *value.decor_mut() = decor;
    }
}

#[cfg(test)]
mod tests {
    use hvsock_address::{ElementName, PartitionName, ServiceId};
    use proptest::collection::{btree_map, vec};
    use proptest::option::of;
    use proptest::prelude::*;

    use super::*;
    use crate::{AccessRule, Override};

    const HAND_WRITTEN: &str = "\
# The demo. Ask Alice before you touch it.
purpose = 'shows \"how\"'   # see the wiki
name    = \"HV Socket Demo\"

# off while the audit runs
enabled = false # until Friday

[vm.Web] # the front end
connect = { partitions = [\"*\"], users = [ 'alice', # root anyway
  \"bob\" ] }
# the end
";

    fn read(text: &str) -> Registration {
        format::decode(Path::new("x"), ServiceId::from_port(1), text.as_bytes()).unwrap()
    }

    fn edited(text: &str, registration: &Registration) -> String {
        edit(Path::new("x"), text.as_bytes(), registration).unwrap()
    }

    #[test]
    fn enabling_changes_one_value_of_a_handwritten_file() {
        let mut registration = read(HAND_WRITTEN);
        assert_eq!(edited(HAND_WRITTEN, &registration), HAND_WRITTEN);
        registration.enabled = true;
        let want = HAND_WRITTEN.replace("enabled = false #", "enabled = true #");
        assert_eq!(edited(HAND_WRITTEN, &registration), want);
    }

    #[test]
    fn disabling_for_one_partition_finds_its_table_ignoring_case() {
        let mut registration = read(HAND_WRITTEN);
        let web = PartitionName::new("web").unwrap();
        registration.vm.get_mut(&web).unwrap().enabled = Some(false);
        let after = edited(HAND_WRITTEN, &registration);
        assert_eq!(read(&after), registration);
        assert!(!after.contains("[vm.web]"), "{after}");
        for line in HAND_WRITTEN.lines() {
            assert!(after.contains(line), "{line} in {after}");
        }
    }

    #[test]
    fn a_file_without_enabled_gets_the_key_only_when_disabled() {
        let plain = "# c\nname = \"a\"\n\n[bind]\n# no users yet\n";
        let mut registration = read(plain);
        assert_eq!(edited(plain, &registration), plain);
        registration.enabled = false;
        let after = edited(plain, &registration);
        assert_eq!(
            after,
            "# c\nname = \"a\"\nenabled = false\n\n[bind]\n# no users yet\n"
        );
    }

    fn rule() -> impl Strategy<Value = AccessRule> {
        let accounts = || of(vec("[a-z *\"'\\\\é]{1,6}", 0..3));
        let children = of(vec("\\*|[a-z0-9][a-z]{0,4}|@[a-z]{1,4}", 0..3));
        (accounts(), accounts(), children).prop_map(|(users, groups, partitions)| AccessRule {
            users,
            groups,
            partitions,
        })
    }

    fn differs() -> impl Strategy<Value = Override> {
        (of(any::<bool>()), rule(), rule(), of(any::<bool>())).prop_map(
            |(enabled, bind, connect, allow_wildcard_binds)| Override {
                enabled,
                bind,
                connect,
                allow_wildcard_binds,
            },
        )
    }

    fn registration() -> impl Strategy<Value = Registration> {
        // Some names are also keys of the file.
        let partition = "bind|connect|vm|enabled|[a-zA-Z][a-z.]{0,3}";
        let vm = btree_map(
            partition.prop_filter_map("a word", |name| PartitionName::new(name).ok()),
            differs(),
            0..3,
        );
        let text = || of("\\PC{1,12}");
        let name = "[A-Za-zé\"'#\\\\]([ -~é]{0,8}[a-z])?";
        (
            (name, any::<bool>(), rule(), rule(), of(any::<bool>())),
            (vm, text(), text(), text()),
        )
            .prop_map(|(rules, rest)| {
                let (name, enabled, bind, connect, allow_wildcard_binds) = rules;
                let (vm, owner, creator, purpose) = rest;
                Registration {
                    enabled,
                    bind,
                    connect,
                    allow_wildcard_binds,
                    vm,
                    owner,
                    creator,
                    purpose,
                    ..Registration::new(
                        ServiceId::from_port(1),
                        ElementName::new(name).unwrap_or(ElementName::new("x").unwrap()),
                    )
                }
            })
    }

    proptest! {
        #[test]
        fn a_written_registration_is_read_back(registration in registration()) {
            let text = format::document(&registration).to_string();
            prop_assert_eq!(read(&text), registration);
        }

        #[test]
        fn any_file_can_be_edited_to_any_registration(
            before in registration(),
            after in registration(),
        ) {
            let text = format::document(&before).to_string();
            let text = format!("# first\n{text}\n# last\n");
            let now = edited(&text, &after);
            prop_assert!(now.contains("# first") && now.contains("# last"), "{}", now);
            prop_assert_eq!(read(&now), after.clone());
            let by_hand = edited(HAND_WRITTEN, &after);
            prop_assert_eq!(read(&by_hand), after);
        }
    }
}
