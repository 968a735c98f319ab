//! The names by which virtual machines are found.
//!
//! A name in Hyper-V may hold anything, be as long as one likes, and be another machine's, too. A
//! partition's name may not, since it is a word of a command line and of access rules. So every
//! machine also has a partition's name, which follows from the list of machines by one rule
//! ([`partition_names`]), and a person may give either. An id always works.

use std::collections::{HashMap, HashSet};
use std::fmt;

use hvsock_address::{PartitionName, VmId};

use crate::Vm;

/// Why no one machine is meant by a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindVmError {
    /// There is none.
    #[error(transparent)]
    Unknown(#[from] UnknownVm),
    /// There are several.
    #[error(transparent)]
    Ambiguous(#[from] AmbiguousVm),
}

/// No virtual machine has this name or id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no virtual machine is called `{text}`; `hvsock vm list` shows those that are there")]
pub struct UnknownVm {
    /// What was looked for.
    pub text: String,
}

/// Several virtual machines have this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AmbiguousVm {
    /// The name.
    pub name: String,
    /// Who has it.
    pub ids: Vec<VmId>,
}

impl std::error::Error for AmbiguousVm {}

impl fmt::Display for AmbiguousVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        let count = self.ids.len();
        write!(f, "{count} virtual machines are called `{}`: ", self.name)?;
        for (at, id) in self.ids.iter().take(SHOWN).enumerate() {
            write!(f, "{}{id}", if at > 0 { ", " } else { "" })?;
        }
        if count > SHOWN {
            write!(f, ", and {} more", count - SHOWN)?;
        }
        f.write_str("; give the id of one")
    }
}

/// The machine that a person means, by its id, by the name that its owner gave it, or by its
/// [partition's name](partition_names). Case does not matter.
pub fn find_vm<'a>(vms: &'a [Vm], text: &str) -> Result<&'a Vm, FindVmError> {
    if let Ok(id) = text.parse::<VmId>() {
        let found = vms.iter().find(|vm| vm.id == id);
        return found.ok_or_else(|| unknown(text));
    }
    let folded = text.trim().to_lowercase();
    let called: Vec<_> = vms
        .iter()
        .filter(|vm| vm.name.trim().to_lowercase() == folded)
        .collect();
    match called[..] {
        [vm] => return Ok(vm),
        [] => {}
        _ => {
            let ids = called.iter().map(|vm| vm.id).collect();
            let name = shortened(text);
            return Err(AmbiguousVm { name, ids }.into());
        }
    }
    let names = partition_names(vms);
    let mut named = vms.iter().zip(&names);
    let found = named.find(|(_, name)| name.as_str().eq_ignore_ascii_case(&folded));
    found.map(|(vm, _)| vm).ok_or_else(|| unknown(text))
}

/// What a partition of each machine is called, in their order. No two are alike.
///
/// A name that is a partition's name already, and no other machine's, stays as it is. Of any other
/// each stretch of characters that a partition's name does not take becomes one `-`, and what is
/// more than 63 characters is left out; where nothing is left, or a word that means something else,
/// it is `vm`. Machines whose names are then alike get `-` and the first 8 digits of their ids, or
/// as many more as it takes.
pub fn partition_names(vms: &[Vm]) -> Vec<PartitionName> {
    let bases: Vec<_> = vms.iter().map(|vm| base(&vm.name)).collect();
    let mut counts = HashMap::new();
    for base in &bases {
        *counts.entry(base.as_ref()).or_insert(0_usize) += 1;
    }
    let alone = |base: &Option<PartitionName>| base.is_some() && counts[&base.as_ref()] == 1;
    let taken = bases.iter().filter(|base| alone(base)).flatten().cloned();
    let mut taken: HashSet<PartitionName> = taken.collect();
    let names = vms.iter().zip(&bases).map(|(vm, base)| match base {
        Some(name) if counts[&Some(name)] == 1 => name.clone(),
        base => with_id(
            base.as_ref().map_or("vm", PartitionName::as_str),
            vm.id,
            &mut taken,
        ),
    });
    names.collect()
}

/// A name with so many digits of an id that nobody has it, and takes it.
fn with_id(base: &str, id: VmId, taken: &mut HashSet<PartitionName>) -> PartitionName {
    let digits = id.uuid().simple().to_string();
    // Once all 32 digits are there, two are alike only if ids are: then they are numbered.
    let tails = (8..=digits.len())
        .map(|count| digits[..count].to_owned())
        .chain((2_u64..).map(|n| format!("{digits}-{n}")));
    for tail in tails {
        let room = PartitionName::MAX_LEN - 1 - tail.len();
        let head = &base[..base.len().min(room)];
        let name = PartitionName::new(format!("{head}-{tail}"));
        if let Some(name) = name.ok().filter(|name| taken.insert(name.clone())) {
            return name;
        }
    }
    unreachable!("numbers do not end")
}

/// The name made of what a partition's name takes of this one.
pub(crate) fn base(name: &str) -> Option<PartitionName> {
    if let Ok(name) = PartitionName::new(name.trim()) {
        return Some(name);
    }
    let mut text = String::new();
    for c in name.chars() {
        let plain = c.is_ascii_alphanumeric() || "._-".contains(c);
        match c {
            c if text.is_empty() && !c.is_ascii_alphanumeric() => {}
            c if plain => text.push(c),
            _ if text.ends_with('-') => {}
            _ => text.push('-'),
        }
        if text.len() == PartitionName::MAX_LEN {
            break;
        }
    }
    PartitionName::new(text.trim_end_matches('-')).ok()
}

fn unknown(text: &str) -> FindVmError {
    let text = shortened(text);
    UnknownVm { text }.into()
}

fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{VmKind, VmState};

    fn vm(name: &str, id: u32) -> Vm {
        Vm {
            name: name.to_owned(),
            id: format!("{id:08x}-0000-0000-0000-000000000000")
                .parse()
                .unwrap(),
            state: VmState::Running,
            kind: VmKind::HyperV,
        }
    }

    fn names(of: &[&str]) -> Vec<String> {
        let vms = of.iter().zip(1..).map(|(name, id)| vm(name, id));
        let vms: Vec<_> = vms.collect();
        let names = partition_names(&vms);
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_machine_is_called_what_a_partitions_name_takes_of_its_name() {
        for (name, want) in [
            ("web", "web"),
            ("Windows 11 dev environment", "Windows-11-dev-environment"),
            ("  (old)  db / 2  ", "old-db-2"),
            ("büro", "b-ro"),
            ("a42e7cda-d03f-480c-9cc2-a4de20abb878", "vm-00000001"),
            ("parent", "vm-00000001"),
            ("仮想マシン", "vm-00000001"),
            ("", "vm-00000001"),
        ] {
            assert_eq!(names(&[name]), [want], "{name:?}");
        }
    }

    #[test]
    fn machines_with_one_name_are_told_apart_by_their_ids() {
        assert_eq!(names(&["Web", "web"]), ["Web-00000001", "web-00000002"]);
        assert_eq!(
            names(&["a b", "a/b", "a-c"]),
            ["a-b-00000001", "a-b-00000002", "a-c"]
        );
        // One who takes the name that another would get changes nobody's meaning.
        let taken = names(&["x", "x", "x-00000001"]);
        assert_eq!(taken, ["x-000000010", "x-00000002", "x-00000001"]);
    }

    #[test]
    fn a_person_may_give_either_name_or_the_id() {
        let vms = [vm("My VM", 1), vm("db", 2), vm("DB", 3)];
        for text in ["My VM", "my vm ", "my-vm", "My-VM", &vms[0].id.to_string()] {
            assert_eq!(find_vm(&vms, text).map(|vm| vm.id), Ok(vms[0].id), "{text}");
        }
        assert_eq!(find_vm(&vms, "db-00000002").map(|vm| vm.id), Ok(vms[1].id));
        let text = find_vm(&vms, "db").unwrap_err().to_string();
        for id in [vms[1].id, vms[2].id] {
            assert!(text.contains(&id.to_string()), "{text}");
        }
        assert!(matches!(
            find_vm(&vms, "mail"),
            Err(FindVmError::Unknown(_))
        ));
        let id = VmId::random().to_string();
        assert!(matches!(find_vm(&vms, &id), Err(FindVmError::Unknown(_))));
    }

    proptest! {
        #[test]
        fn no_two_machines_are_called_alike(
            names in proptest::collection::vec("(?s).{0,80}|[xX](-0000000[12])?|x-0{0,7}1?", 0..12),
            same_ids: bool,
        ) {
            let id = |at: usize| if same_ids { 1 } else { at as u32 };
            let vms: Vec<_> = names.iter().enumerate().map(|(at, name)| vm(name, id(at))).collect();
            let found = partition_names(&vms);
            prop_assert_eq!(found.len(), vms.len());
            prop_assert_eq!(found.iter().collect::<HashSet<_>>().len(), vms.len());
        }

        #[test]
        fn every_machine_is_found_by_its_partitions_name_unless_another_owner_gave_it(
            names in proptest::collection::vec("[a-c ]{0,3}(-0100)?", 1..8),
        ) {
            let vms = names.iter().zip(0..).map(|(name, id)| vm(name, id));
            let vms: Vec<_> = vms.collect();
            for (one, name) in vms.iter().zip(partition_names(&vms)) {
                match find_vm(&vms, name.as_str()) {
                    Ok(found) => prop_assert!(found.id == one.id || found.name.trim() == name.as_str()),
                    Err(error) => prop_assert!(matches!(error, FindVmError::Ambiguous(_)), "{error}"),
                }
            }
        }
    }
}
