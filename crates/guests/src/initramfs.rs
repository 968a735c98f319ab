//! The initramfs, the guest's only file system: busybox, modules, the caller's files, and the init script
//! that serves the command ports.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use crate::config::{Config, Role};
use crate::cpio::Archive;
use crate::file::Source;
use crate::kit::Kit;
use crate::{modules, tools};

const INIT: &str = include_str!("init.sh");

/// The modules for vsock in a guest, in a host, and an optional one.
const VSOCK: [&str; 1] = ["vmw_vsock_virtio_transport"];
const VSOCK_HOST: [&str; 2] = ["vhost_vsock", "vsock_loopback"];
const VSOCK_EXTRA: [&str; 1] = ["vsock_diag"];

/// Builds the archive.
pub fn build(kit: &Kit, config: &Config) -> io::Result<Vec<u8>> {
    let mut image = Image::default();
    for folder in ["/proc", "/sys", "/dev", "/tmp", "/root", "/modules"] {
        image.folder(folder);
    }
    // Without it, init has no console.
    image
        .archive
        .character_device("/dev/console", 0o600, (5, 1));
    image.file("/init", 0o755, INIT.as_bytes());
    image.file("/bin/busybox", 0o755, &fs::read(&kit.busybox)?);
    for applet in applets(&kit.busybox)? {
        image.link(&format!("/bin/{applet}"), "busybox");
    }
    let network = if config.network.is_some() { "yes" } else { "" };
    let driver = kit.vmm.driver();
    let ports = driver.port_files();
    let name = &config.name;
    let containers = if config.containers || config.systemd {
        "yes"
    } else {
        ""
    };
    let settings =
        format!("name='{name}'\nnetwork={network}\ncontainers={containers}\nports='{ports}'\n");
    image.file("/etc/guest", 0o644, settings.as_bytes());

    let mut required = driver.modules().to_vec();
    match config.role {
        Role::Guest => required.extend(VSOCK),
        Role::Host => required.extend(VSOCK_HOST),
    }
    if config.network.is_some() {
        required.push("virtio_net");
    }
    if config.systemd {
        required.push("overlay");
    }
    let modules = modules::resolve(&kit.kernel, &kit.busybox, &required, &VSOCK_EXTRA)?;
    for (index, module) in modules.iter().enumerate() {
        let path = format!("/modules/{index:02}-{}.ko", module.name);
        image.file(&path, 0o644, &module.content);
    }
    for file in &config.files {
        match &file.source {
            Source::Bytes(content) => image.file(&file.path, file.mode, content),
            Source::Host(path) => {
                let content = fs::read(path).map_err(|error| {
                    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
                })?;
                image.file(&file.path, file.mode, &content);
            }
        }
    }
    Ok(image.archive.finish())
}

fn applets(busybox: &Path) -> io::Result<Vec<String>> {
    let printed = tools::output(&mut tools::command(busybox, &["--list"]))?;
    let names = String::from_utf8_lossy(&printed);
    let names = names.lines().filter(|name| *name != "busybox");
    Ok(names.map(str::to_owned).collect())
}

/// An archive that contains every folder once, before its contents.
#[derive(Default)]
struct Image {
    archive: Archive,
    added: BTreeSet<String>,
}

impl Image {
    fn folder(&mut self, path: &str) {
        let path = path.trim_end_matches('/');
        if path.is_empty() || !self.added.insert(path.to_owned()) {
            return;
        }
        self.parent(path);
        self.archive.folder(path);
    }

    fn parent(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent);
        }
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        if self.added.insert(path.to_owned()) {
            self.parent(path);
            self.archive.file(path, mode, content);
        }
    }

    fn link(&mut self, path: &str, target: &str) {
        if self.added.insert(path.to_owned()) {
            self.parent(path);
            self.archive.link(path, target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_added_once_and_before_its_contents() {
        let mut image = Image::default();
        image.file("/a/b/c", 0o644, b"x");
        image.file("/a/b/d", 0o644, b"y");
        image.file("/a/b/c", 0o644, b"not twice");
        let bytes = image.archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        let at = |name: &str| text.find(name).unwrap_or_else(|| panic!("no {name:?}"));
        assert!(at("a/b\0") < at("a/b/c\0"));
        assert_eq!(text.matches("a/b\0").count(), 1);
        assert_eq!(text.matches("a/b/c\0").count(), 1);
    }
}
