//! The options of `hvsock vm add` for how a VM's connections reach its guest, and how a link is shown.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result};
use clap::builder::PossibleValuesParser;
use clap::{Args, builder::TypedValueParser as _};
use hvsock_control::{HybridStyle, LinkSpec, ManagerRef, Partition};

/// The context ids of guests. Lower ids are reserved (vsock(7)), and the highest is VMADDR_CID_ANY.
const CIDS: RangeInclusive<u32> = 3..=u32::MAX - 1;

/// The link to the guest, if it is not the broker's vhost-user device.
#[derive(Debug, Args)]
pub struct LinkArgs {
    /// Reach the guest by the hybrid Unix socket of its VMM, such as Firecracker's uds_path
    #[arg(long, value_name = "PATH", conflicts_with_all = ["kernel_cid", "cid", "unsealed_memory"])]
    hybrid: Option<PathBuf>,
    /// Whose manner the hybrid socket has
    #[arg(long, value_name = "STYLE", requires = "hybrid", value_parser = styles(),
        default_value = HybridStyle::default().label())]
    style: HybridStyle,
    /// Reach the guest by the kernel's vhost-vsock, at the CID that its VMM has given it
    #[arg(long, value_name = "N", value_parser = guest_cid,
        conflicts_with_all = ["cid", "unsealed_memory", "user"])]
    kernel_cid: Option<u32>,
    /// The network namespace of the VMM, if not the broker's
    #[arg(long, value_name = "PATH", requires = "kernel_cid")]
    netns: Option<PathBuf>,
    /// Whom to ask whether it runs, such as libvirt:web [default: nobody; its state is unknown]
    #[arg(long, value_name = "MANAGER[:VM]", requires = "kernel_cid")]
    manager: Option<Manager>,
}

/// A manager, and the VM's name there if it is another.
#[derive(Clone, Debug)]
struct Manager {
    manager: String,
    vm: Option<String>,
}

impl FromStr for Manager {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (manager, vm) = match text.split_once(':') {
            Some((manager, vm)) => (manager, Some(vm)),
            None => (text, None),
        };
        if !["libvirt", "machined", "incus"].contains(&manager) || vm == Some("") {
            return Err("expected libvirt, machined or incus, or one with a VM as in libvirt:web");
        }
        Ok(Self {
            manager: manager.to_owned(),
            vm: vm.map(str::to_owned),
        })
    }
}

/// Parses the context id of a guest.
pub fn guest_cid(text: &str) -> Result<u32, String> {
    let range = format!(
        "a guest's CID is a number from {} to {}",
        CIDS.start(),
        CIDS.end()
    );
    let number: u64 = match text.bytes().all(|c| c.is_ascii_digit()) {
        // A number with too many digits is too large.
        true if !text.is_empty() => text.parse().unwrap_or(u64::MAX),
        _ => return Err(range),
    };
    match u32::try_from(number) {
        Ok(0) => Err(format!("CID 0 is reserved for the hypervisor; {range}")),
        Ok(1) => Err(format!("CID 1 is the machine itself (loopback); {range}")),
        Ok(2) => Err(format!("CID 2 is the host; {range}")),
        Ok(u32::MAX) => Err(format!("CID {number} stands for any; {range}")),
        Ok(cid) => Ok(cid),
        Err(_) => Err(range),
    }
}

fn styles() -> impl clap::builder::TypedValueParser<Value = HybridStyle> {
    PossibleValuesParser::new(HybridStyle::ALL.map(HybridStyle::label)).map(|label| {
        let style = HybridStyle::ALL
            .into_iter()
            .find(|one| one.label() == label);
        style.unwrap_or_default()
    })
}

impl LinkArgs {
    /// The link of the VM `name`, with the CID that it has in the kernel.
    pub fn link(&self, name: &str) -> Result<(LinkSpec, Option<u32>)> {
        let absolute = |path: &Path| {
            std::path::absolute(path).with_context(|| format!("cannot use {}", path.display()))
        };
        if let Some(path) = &self.hybrid {
            let (path, style) = (real(&absolute(path)?), self.style);
            return Ok((LinkSpec::Hybrid { path, style }, None));
        }
        if self.kernel_cid.is_some() {
            let netns = self.netns.as_deref().map(absolute).transpose()?;
            let manager = self.manager.as_ref().map(|one| ManagerRef {
                manager: one.manager.clone(),
                vm: one.vm.clone().unwrap_or_else(|| name.to_owned()),
            });
            return Ok((LinkSpec::Kernel { netns, manager }, self.kernel_cid));
        }
        Ok((LinkSpec::VhostUser, None))
    }
}

/// The path without symbolic links in its folder, which the broker does not follow. What does not exist yet, or
/// may not be seen, stays as it is.
fn real(path: &Path) -> PathBuf {
    if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        // No socket. The broker refuses it, which it would not without the slash.
        return path.to_owned();
    }
    for folder in path.ancestors().skip(1) {
        if let (Ok(folder), Ok(rest)) = (folder.canonicalize(), path.strip_prefix(folder)) {
            return folder.join(rest);
        }
    }
    path.to_owned()
}

/// The link in one word, for a table.
pub fn word(vm: &Partition) -> &'static str {
    vm.link.as_ref().map_or("", LinkSpec::kind)
}

/// What `hvsock vm show` says of a link: names and values.
pub fn facts(vm: &Partition) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    match &vm.link {
        None | Some(LinkSpec::VhostUser) => {}
        Some(LinkSpec::Hybrid { path, style }) => {
            let style = style.label();
            facts.push(("link", format!("hybrid sockets of {style}")));
            facts.push(("path", path.display().to_string()));
        }
        Some(LinkSpec::Kernel { netns, manager }) => {
            facts.push(("link", "the kernel's vhost-vsock".to_owned()));
            facts.extend(
                netns
                    .iter()
                    .map(|path| ("netns", path.display().to_string())),
            );
            let manager = manager.iter();
            facts.extend(manager.map(|one| ("manager", format!("{}: {}", one.manager, one.vm))));
        }
    }
    if !vm.lacks.is_empty() {
        facts.push(("lacks", vm.lacks.join("; ")));
    }
    facts.extend(vm.problems.iter().map(|text| ("problem", text.clone())));
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbolic_links_in_the_folder_of_a_hybrid_socket_are_resolved_even_if_the_rest_does_not_exist()
     {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("run")).unwrap();
        std::os::unix::fs::symlink("run", base.join("var")).unwrap();
        std::os::unix::fs::symlink("var", base.join("again")).unwrap();
        std::os::unix::fs::symlink("nowhere", base.join("dangling")).unwrap();
        std::os::unix::fs::symlink("elsewhere", base.join("run/v.sock")).unwrap();
        for (given, want) in [
            ("var/v.sock", "run/v.sock"),
            ("again/web/v.sock", "run/web/v.sock"),
            ("var/../var/v.sock", "run/v.sock"),
            ("run/v.sock", "run/v.sock"),
            ("none/v.sock", "none/v.sock"),
            ("dangling/v.sock", "dangling/v.sock"),
        ] {
            assert_eq!(real(&base.join(given)), base.join(want), "{given}");
        }
        assert_eq!(real(Path::new("/")), Path::new("/"));
    }

    #[test]
    fn a_cid_that_no_guest_can_have_is_refused_with_what_it_is() {
        for (text, why) in [
            ("0", "CID 0 is reserved"),
            ("1", "CID 1 is the machine itself"),
            ("2", "CID 2 is the host"),
            ("4294967295", "stands for any"),
            (
                "4294967296",
                "a guest's CID is a number from 3 to 4294967294",
            ),
            ("99999999999999999999999", "a guest's CID is a number"),
            ("abc", "a guest's CID is a number"),
            ("-3", "a guest's CID is a number"),
            ("+3", "a guest's CID is a number"),
            ("", "a guest's CID is a number"),
            ("0x2a", "a guest's CID is a number"),
        ] {
            let error = guest_cid(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert_eq!(guest_cid("3"), Ok(3));
        assert_eq!(guest_cid("4294967294"), Ok(4_294_967_294));
    }
}
