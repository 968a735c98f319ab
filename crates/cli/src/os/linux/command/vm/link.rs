//! The options of `hvsock vm add` for how a VM's connections reach its guest, and how a link is shown.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result};
use clap::builder::PossibleValuesParser;
use clap::{Args, builder::TypedValueParser as _, value_parser};
use hvsock_control::{HybridStyle, LinkSpec, ManagerRef, Partition};

/// The context ids of guests. Lower ids are reserved (vsock(7)), and the highest is VMADDR_CID_ANY.
pub const CIDS: RangeInclusive<i64> = 3..=u32::MAX as i64 - 1;

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
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(CIDS),
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
}
