//! The file of a partition, `partitions/NAME.toml`. `docs/registry.md` documents its format.

use std::path::{Path, PathBuf};

use hvsock_address::{PartitionName, VmId};
use hvsock_control::{LinkSpec, VmSpec};
use hvsock_fabric::{AddPartitionError, PartitionKind, PartitionSpec, PartitionState};
use hvsock_registry::entry_folder::EntryKind;
use hvsock_registry::store::Problem;
use hvsock_registry::toml_problem;
use hvsock_virtio::GuestCid;
use serde::{Deserialize, Serialize};

use super::vm::{self, CidKey, VmEntry, VmmUser};

/// A partition as its file describes it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PartitionEntry {
    pub(crate) name: PartitionName,
    pub(crate) id: VmId,
    pub(crate) groups: Vec<String>,
    /// Whether a container has a CDI device, if the broker writes them.
    pub(crate) cdi: bool,
    /// The settings of a VM; a container has none.
    pub(crate) vm: Option<VmSpec>,
    /// Whether a container is removed with that of its runtime.
    pub(crate) ephemeral: bool,
}

/// The keys of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    kind: FileKind,
    id: VmId,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    /// Whether the container has a CDI device. Containers only.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    cdi: bool,
    /// The context id (CID). VMs only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cid: Option<u64>,
    /// Maps the VM's memory even if its VMM can shrink it (no `F_SEAL_SHRINK`). VMs only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unsealed_memory: bool,
    /// Name or uid of the user that the VMM runs as, if not the broker's. VMs only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    /// How the VM's connections reach its guest. VMs only.
    #[serde(default, skip_serializing_if = "is_default")]
    link: LinkSpec,
    /// Whether it is removed with the container of its runtime. Containers only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    ephemeral: bool,
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_yes(value: &bool) -> bool {
    *value
}

fn is_default(link: &LinkSpec) -> bool {
    *link == LinkSpec::default()
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FileKind {
    Container,
    Vm,
}

/// A value that only one partition may have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PartitionClaim {
    /// A name in lower case.
    Name(String),
    Id(VmId),
    Cid(CidKey),
    /// The path of the VMM's socket.
    HybridPath(PathBuf),
}

/// Why two partitions exclude each other.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartitionClash {
    #[error(transparent)]
    Fabric(AddPartitionError),
    #[error("the VM {name} has the CID {} already; {}", taken.cid, taken.space.advice())]
    Cid { taken: CidKey, name: PartitionName },
    #[error("the VM {name} has the hybrid socket {} already", path.display())]
    HybridPath { path: PathBuf, name: PartitionName },
}

impl PartitionEntry {
    /// The VM settings, or `None` for a container. Looks up the VMM's user, which may block.
    pub(crate) fn resolved_vm(&self) -> Result<Option<VmEntry>, String> {
        let Some(spec) = self.vm.clone() else {
            return Ok(None);
        };
        let cid = spec.cid.map(|cid| GuestCid::try_from(u64::from(cid)));
        let cid = cid.transpose().map_err(|error| format!("`cid`: {error}"))?;
        let user = spec.user.clone().map(VmmUser::find).transpose()?;
        Ok(Some(VmEntry::new(spec, cid, user)))
    }

    /// A VM's CID, if it has one, and among which VMs it is unique.
    pub(crate) fn cid_key(&self) -> Option<CidKey> {
        let vm = self.vm.as_ref()?;
        let space = vm::cid_space(&vm.link)?;
        let cid = GuestCid::try_from(u64::from(vm.cid?)).ok()?;
        Some(CidKey { space, cid })
    }

    /// The path of a VM's hybrid socket, if it has one.
    fn hybrid_path(&self) -> Option<PathBuf> {
        vm::hybrid_path(&self.vm.as_ref()?.link)
    }

    /// The partition's description for the fabric.
    pub(crate) fn spec(&self) -> PartitionSpec {
        let (kind, state) = match self.vm {
            // Nobody says whether a container runs until its runtime does.
            None => (PartitionKind::Container, PartitionState::Unknown),
            // A VM runs once its link says so.
            Some(_) => (PartitionKind::Vm, PartitionState::Defined),
        };
        PartitionSpec {
            kind,
            name: self.name.clone(),
            vm_id: self.id,
            groups: self.groups.clone(),
            state,
        }
    }
}

impl File {
    /// The settings of the VM, or `None` for a container. The error is the first semantic one, which
    /// types and key names alone do not rule out.
    fn vm(self) -> Result<Option<VmSpec>, String> {
        match self.kind {
            FileKind::Vm if !self.cdi => {
                Err("describes a VM; only a container has `cdi`".to_owned())
            }
            FileKind::Vm => {
                if self.ephemeral {
                    return Err("describes a VM; only a container has `ephemeral`".to_owned());
                }
                if self.cid.is_none() && self.link == LinkSpec::VhostUser {
                    return Err("describes a VM and has no `cid` (its context id)".to_owned());
                }
                let cid = self.cid.map(GuestCid::try_from).transpose();
                let cid = cid.map_err(|error| format!("`cid`: {error}"))?;
                let spec = VmSpec {
                    cid: cid.map(GuestCid::get),
                    link: self.link,
                    unsealed_memory: self.unsealed_memory,
                    user: self.user,
                };
                vm::check_spec(&spec)?;
                Ok(Some(spec))
            }
            FileKind::Container
                if self.cid.is_some()
                    || self.unsealed_memory
                    || self.user.is_some()
                    || self.link != LinkSpec::default() =>
            {
                let what = "only a VM has `cid`, `link`, `unsealed_memory` and `user`";
                Err(format!("describes a container; {what}"))
            }
            FileKind::Container => Ok(None),
        }
    }
}

/// Partitions as the entries of a folder.
#[derive(Debug)]
pub(crate) struct PartitionKinds;

impl EntryKind for PartitionKinds {
    /// The name, in the spelling of the file. Two files may have the same name in two spellings.
    type Key = String;
    type Entry = PartitionEntry;
    type Claim = PartitionClaim;
    type Clash = PartitionClash;

    const SINGULAR: &'static str = "partition";
    const PLURAL: &'static str = "partitions";

    fn parse_key(stem: &str) -> Result<String, String> {
        match PartitionName::unnested(stem) {
            Ok(_) => Ok(stem.to_owned()),
            Err(error) => Err(format!("is not named after a partition: {error}")),
        }
    }

    fn stem(key: &String) -> String {
        key.clone()
    }

    fn key(entry: &PartitionEntry) -> String {
        entry.name.to_string()
    }

    fn decode(
        path: &Path,
        key: &String,
        bytes: &[u8],
        _: Option<&PartitionEntry>,
    ) -> Result<PartitionEntry, Problem> {
        let whole = |what: String| Problem::whole(path, what);
        let file: File = toml_problem::parse(path, toml_problem::text(path, bytes)?)?;
        let name =
            PartitionName::unnested(key.as_str()).map_err(|error| whole(error.to_string()))?;
        let (id, groups) = (file.id, file.groups.clone());
        let (cdi, ephemeral) = (file.cdi, file.ephemeral);
        let vm = file.vm().map_err(whole)?;
        let entry = PartitionEntry {
            name,
            id,
            groups,
            cdi,
            vm,
            ephemeral,
        };
        // A user that this machine does not have is a problem of the file.
        entry.resolved_vm().map_err(whole)?;
        Ok(entry)
    }

    fn text(entry: &PartitionEntry, _: Option<&PartitionEntry>) -> String {
        let vm = entry.vm.clone().unwrap_or_default();
        let file = File {
            kind: match entry.vm {
                None => FileKind::Container,
                Some(_) => FileKind::Vm,
            },
            id: entry.id,
            groups: entry.groups.clone(),
            cdi: entry.cdi,
            cid: vm.cid.map(u64::from),
            unsealed_memory: vm.unsealed_memory,
            user: vm.user,
            link: vm.link,
            ephemeral: entry.ephemeral,
        };
        // An entry that TOML cannot represent is found when its text is read again.
        toml::to_string(&file).unwrap_or_default()
    }

    /// The fabric has the last word on reserved ids and limits, when it adds the partition.
    fn check(_entry: &PartitionEntry) -> Result<(), PartitionClash> {
        Ok(())
    }

    fn claims(entry: &PartitionEntry) -> Vec<PartitionClaim> {
        let name = PartitionClaim::Name(entry.name.as_str().to_ascii_lowercase());
        [name, PartitionClaim::Id(entry.id)]
            .into_iter()
            .chain(entry.cid_key().map(PartitionClaim::Cid))
            .chain(entry.hybrid_path().map(PartitionClaim::HybridPath))
            .collect()
    }

    fn clash(existing: &PartitionEntry, new: &PartitionEntry) -> PartitionClash {
        let name = existing.name.clone();
        if existing.name == new.name {
            return PartitionClash::Fabric(AddPartitionError::NameTaken { name });
        }
        if existing.id != new.id
            && let Some(path) = new.hybrid_path()
            && existing.hybrid_path().as_ref() == Some(&path)
        {
            return PartitionClash::HybridPath { path, name };
        }
        let taken = new.cid_key();
        match taken {
            Some(taken) if existing.id != new.id && existing.cid_key().as_ref() == Some(&taken) => {
                PartitionClash::Cid { taken, name }
            }
            _ => PartitionClash::Fabric(AddPartitionError::IdTaken {
                id: existing.id,
                name,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use hvsock_control::{HybridStyle, ManagerRef};

    use super::*;

    fn read(text: &str) -> Result<PartitionEntry, String> {
        let path = Path::new("web.toml");
        PartitionKinds::decode(path, &"web".to_owned(), text.as_bytes(), None)
            .map_err(|e| e.to_string())
    }

    const ID: &str = "id = \"0b2f1f0e-0000-4000-8000-000000000001\"\n";

    #[test]
    fn the_examples_in_the_documentation_are_valid() {
        let page = include_str!("../../../../docs/registry.md");
        let page = page.split("## Partitions").nth(1).unwrap();
        let mut examples = page.split("```").skip(1).step_by(2);
        let mut next = || read(examples.next().unwrap().strip_prefix("toml").unwrap()).unwrap();
        let vm = next().vm.unwrap();
        assert_eq!((vm.cid, vm.unsealed_memory), (Some(42), false));
        let links = [(); 2].map(|()| next().vm.unwrap().link.kind());
        assert_eq!(links, ["hybrid", "kernel"]);
        assert_eq!(next().vm, None);
    }

    #[test]
    fn a_written_entry_is_read_back() {
        let entry = |vm| PartitionEntry {
            name: PartitionName::new("web").unwrap(),
            id: VmId::of_container("web"),
            groups: vec!["ci".to_owned()],
            cdi: true,
            vm,
            ephemeral: false,
        };
        let vm = VmSpec {
            cid: Some(4_294_967_294),
            link: LinkSpec::default(),
            unsealed_memory: true,
            user: Some("0".to_owned()),
        };
        let hybrid = VmSpec {
            link: LinkSpec::Hybrid {
                path: "/run/vm/v.sock".into(),
                style: HybridStyle::OpenVmm,
            },
            ..VmSpec::default()
        };
        let kernel = VmSpec {
            cid: Some(3),
            link: LinkSpec::Kernel {
                netns: Some("/run/netns/blue".into()),
                manager: Some(ManagerRef {
                    manager: "libvirt".to_owned(),
                    vm: "web 1".to_owned(),
                }),
            },
            ..VmSpec::default()
        };
        for vm in [None, Some(vm), Some(hybrid), Some(kernel)] {
            let entry = entry(vm);
            assert_eq!(read(&PartitionKinds::text(&entry, None)), Ok(entry));
        }
        let without = PartitionEntry {
            cdi: false,
            ..entry(None)
        };
        let text = PartitionKinds::text(&without, None);
        assert!(text.contains("cdi = false"), "{text}");
        assert_eq!(read(&text), Ok(without));
        let ephemeral = PartitionEntry {
            ephemeral: true,
            ..entry(None)
        };
        assert_eq!(read(&PartitionKinds::text(&ephemeral, None)), Ok(ephemeral));
    }

    #[test]
    fn two_files_with_one_hybrid_socket_clash_in_any_spelling_and_the_error_names_the_other_vm() {
        let entry = |name: &str, path: &str| PartitionEntry {
            name: PartitionName::new(name).unwrap(),
            id: VmId::of_container(name),
            groups: Vec::new(),
            cdi: true,
            vm: Some(VmSpec {
                link: LinkSpec::Hybrid {
                    path: path.into(),
                    style: HybridStyle::Firecracker,
                },
                ..VmSpec::default()
            }),
            ephemeral: false,
        };
        let web = entry("web", "/run/v.sock");
        let claims = |entry: &PartitionEntry| PartitionKinds::claims(entry).pop();
        for path in [
            "/run/v.sock",
            "/run//v.sock",
            "/run/./v.sock",
            "/x/../run/v.sock",
        ] {
            let db = entry("db", path);
            assert_eq!(claims(&db), claims(&web), "{path}");
            assert_eq!(
                PartitionKinds::clash(&web, &db).to_string(),
                "the VM web has the hybrid socket /run/v.sock already"
            );
        }
        assert_ne!(claims(&entry("db", "/run/w.sock")), claims(&web));
    }

    #[test]
    fn a_problem_has_its_position_or_concerns_the_whole_file() {
        for (text, want) in [
            (
                "kind = \"toaster\"\n",
                "web.toml:1:8: unknown variant `toaster`",
            ),
            ("kind = \"vm\"\ncid = \"3\"\n", "web.toml:2:7: expected u64"),
            (
                "kind = \"vm\"\ncdi = 3\n",
                "web.toml:2:7: expected a boolean",
            ),
            (
                "kind = \"vm\"\ncid = 3\ncdi = false\n",
                "web.toml: describes a VM; only a container has `cdi`",
            ),
            (
                "kind = \"vm\"\ncd = 3\n",
                "web.toml:2:1: unknown key `cd`; did you mean `cdi`?",
            ),
            (
                "kind = \"vm\"\n",
                "web.toml: describes a VM and has no `cid`",
            ),
            (
                "kind = \"vm\"\ncid = 2\n",
                "web.toml: `cid`: a guest's CID is a number",
            ),
            (
                "kind = \"container\"\ncid = 3\n",
                "web.toml: describes a container; only a VM",
            ),
            (
                "kind = \"vm\"\ncid = 3\nephemeral = true\n",
                "web.toml: describes a VM; only a container",
            ),
            (
                "kind = \"vm\"\nlink = { kind = \"kernel\" }\n",
                "web.toml: a kernel link needs the CID",
            ),
            (
                "kind = \"vm\"\nlink = { kind = \"hybrid\", path = \"v.sock\" }\n",
                "web.toml: the path of hybrid sockets must be absolute",
            ),
            (
                "kind = \"vm\"\ncid = 3\nlink = { kind = \"telepathy\" }\n",
                "web.toml:3:17: unknown variant `telepathy`",
            ),
            (
                "kind = \"vm\"\ncid = 3\nuser = \"no such user\"\n",
                "web.toml: this machine has no user `no such user`",
            ),
        ] {
            let error = read(&format!("{text}{ID}")).unwrap_err();
            assert!(error.starts_with(want), "{want}: {error}");
        }
    }
}
