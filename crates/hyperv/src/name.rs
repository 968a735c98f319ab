//! The names of virtual machines.
//!
//! A name in Hyper-V may contain any text, have any length and be used twice. A partition name may
//! not, because it appears on command lines and in access rules. So every machine also has a
//! partition name, which [`partition_names`] derives from the list of machines. User input may be
//! either name, or the id.

use std::collections::{HashMap, HashSet};
use std::fmt;

use hvsock_address::{PartitionName, VmId};

use crate::Vm;

/// Why user input does not identify one virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindVmError {
    /// No machine has this name or id.
    #[error(transparent)]
    Unknown(#[from] UnknownVm),
    /// Several machines have this name.
    #[error(transparent)]
    Ambiguous(#[from] AmbiguousVm),
}

/// No virtual machine has this name or id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no virtual machine has the name `{text}`")]
pub struct UnknownVm {
    /// The name or id.
    pub text: String,
}

/// Several virtual machines have this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AmbiguousVm {
    /// The name.
    pub name: String,
    /// The ids of these machines.
    pub ids: Vec<VmId>,
}

impl std::error::Error for AmbiguousVm {}

impl fmt::Display for AmbiguousVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        let count = self.ids.len();
        write!(
            f,
            "{count} virtual machines have the name `{}`: ",
            self.name
        )?;
        for (at, id) in self.ids.iter().take(SHOWN).enumerate() {
            write!(f, "{}{id}", if at > 0 { ", " } else { "" })?;
        }
        if count > SHOWN {
            write!(f, ", and {} more", count - SHOWN)?;
        }
        f.write_str("; use the id of one of them")
    }
}

/// Finds a machine by its id, its name or its [partition name](partition_names). Ignores case.
///
/// # Errors
///
/// [`FindVmError`] if no machine, or more than one, has this name.
pub fn find_vm<'a>(vms: &'a [Vm], text: &str) -> Result<&'a Vm, FindVmError> {
    if let Ok(id) = text.parse::<VmId>() {
        let found = vms.iter().find(|vm| vm.id == id);
        return found.ok_or_else(|| unknown(text));
    }
    let folded = text.trim().to_lowercase();
    let matches: Vec<_> = vms
        .iter()
        .filter(|vm| vm.name.trim().to_lowercase() == folded)
        .collect();
    match matches[..] {
        [vm] => return Ok(vm),
        [] => {}
        _ => {
            let ids = matches.iter().map(|vm| vm.id).collect();
            let name = shortened(text);
            return Err(AmbiguousVm { name, ids }.into());
        }
    }
    let names = partition_names(vms);
    let mut named = vms.iter().zip(&names);
    let found = named.find(|(_, name)| name.as_str().eq_ignore_ascii_case(&folded));
    found.map(|(vm, _)| vm).ok_or_else(|| unknown(text))
}

/// The partition name of each machine, in order. All of them are distinct.
///
/// A unique name that is a valid partition name is used unchanged. In any other name each sequence
/// of invalid characters becomes one `-`, and the name is truncated to 63 characters. If the result
/// is empty or a reserved word, the name is `vm`. Equal names get `-` and the first 8 digits of the
/// machine's id as a suffix, or more digits if needed.
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

/// Appends as many digits of the id as make the name unique, and reserves the name.
fn with_id(base: &str, id: VmId, taken: &mut HashSet<PartitionName>) -> PartitionName {
    let digits = id.uuid().simple().to_string();
    // With all 32 digits two names are equal only if the ids are. Then a number follows.
    let tails = (8..=digits.len())
        .map(|count| digits[..count].to_owned())
        .chain((2_u64..).map(|n| format!("{digits}-{n}")));
    for tail in tails {
        let free = PartitionName::MAX_LEN - 1 - tail.len();
        let head = &base[..base.len().min(free)];
        let name = PartitionName::new(format!("{head}-{tail}"));
        if let Some(name) = name.ok().filter(|name| taken.insert(name.clone())) {
            return name;
        }
    }
    unreachable!("the numbers are unlimited")
}

/// The partition name derived from this name, if any valid character is left.
pub(crate) fn base(name: &str) -> Option<PartitionName> {
    if let Ok(name) = PartitionName::unnested(name.trim()) {
        return Some(name);
    }
    let mut text = String::new();
    for c in name.chars() {
        let is_valid = c.is_ascii_alphanumeric() || "._-".contains(c);
        match c {
            c if text.is_empty() && !c.is_ascii_alphanumeric() => {}
            c if is_valid => text.push(c),
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
    fn a_partition_name_consists_of_the_valid_characters_of_the_name() {
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
    fn machines_with_equal_names_get_their_ids_as_suffix() {
        assert_eq!(names(&["Web", "web"]), ["Web-00000001", "web-00000002"]);
        assert_eq!(
            names(&["a b", "a/b", "a-c"]),
            ["a-b-00000001", "a-b-00000002", "a-c"]
        );
        // A machine whose own name equals a suffixed name keeps it.
        let taken = names(&["x", "x", "x-00000001"]);
        assert_eq!(taken, ["x-000000010", "x-00000002", "x-00000001"]);
    }

    #[test]
    fn a_machine_is_found_by_either_name_or_by_its_id() {
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
        fn partition_names_are_distinct(
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
        fn every_machine_is_found_by_its_partition_name_unless_it_is_another_machines_name(
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
