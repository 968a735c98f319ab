//! Which of the kernel's modules a guest loads, and in which order.
//!
//! The modules themselves say on what they depend (`depends=` in their `.modinfo`), so this works
//! for a package that was only unpacked, in which nobody has run `depmod`.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::kit::Kit;
use crate::tools;

/// A module, decompressed.
#[derive(Debug)]
pub struct Module {
    pub name: String,
    pub content: Vec<u8>,
}

/// The modules of these names with all that they depend on, each after those. What is built into the
/// kernel is left out, and so are names in `optional` that this kernel does not have.
pub fn resolve(kit: &Kit, required: &[&str], optional: &[&str]) -> io::Result<Vec<Module>> {
    let mut resolver = Resolver {
        kit,
        built_in: built_in(&kit.kernel.modules)?,
        files: BTreeMap::new(),
        seen: HashSet::new(),
        order: Vec::new(),
    };
    collect(&kit.kernel.modules.join("kernel"), &mut resolver.files)?;
    for name in required {
        resolver.add(name, true)?;
    }
    for name in optional {
        resolver.add(name, false)?;
    }
    Ok(resolver.order)
}

struct Resolver<'a> {
    kit: &'a Kit,
    built_in: HashSet<String>,
    files: BTreeMap<String, PathBuf>,
    seen: HashSet<String>,
    order: Vec<Module>,
}

impl Resolver<'_> {
    fn add(&mut self, name: &str, required: bool) -> io::Result<()> {
        let name = normal(name);
        if self.built_in.contains(&name) || !self.seen.insert(name.clone()) {
            return Ok(());
        }
        let Some(file) = self.files.get(&name) else {
            if required {
                return Err(io::Error::other(format!(
                    "the kernel {} has no module {name}",
                    self.kit.kernel.image.display()
                )));
            }
            return Ok(());
        };
        let content = decompressed(&self.kit.busybox, file)?;
        for dependency in depends(&content) {
            self.add(&dependency, true)?;
        }
        self.order.push(Module { name, content });
        Ok(())
    }
}

/// Modules are named with either sign, and mean the same.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// `kernel/net/vsock.ko.xz` is `vsock`.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let (name, ending) = name.split_once(".ko")?;
    (ending.is_empty() || ending.starts_with('.')).then(|| normal(name))
}

fn built_in(folder: &Path) -> io::Result<HashSet<String>> {
    let list = fs::read_to_string(folder.join("modules.builtin"))?;
    Ok(list
        .lines()
        .filter_map(|line| module_name(line.as_ref()))
        .collect())
}

fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

fn decompressed(busybox: &Path, file: &Path) -> io::Result<Vec<u8>> {
    let ending = file.extension().and_then(|ending| ending.to_str());
    match ending.unwrap_or_default() {
        "ko" => fs::read(file),
        "xz" => tools::output(tools::command(busybox, &["xzcat"]).arg(file)),
        "gz" => tools::output(tools::command(busybox, &["zcat"]).arg(file)),
        // Which busybox cannot do.
        "zst" => match tools::find("zstd") {
            Some(zstd) => tools::output(tools::command(&zstd, &["-dcq"]).arg(file)),
            None => Err(io::Error::other(
                "the kernel's modules are compressed by zstd; install it with `apt-get install zstd`",
            )),
        },
        other => Err(io::Error::other(format!(
            "{}: nobody knows how to decompress .{other}",
            file.display()
        ))),
    }
}

/// What `.modinfo` says in `depends=`. That section is text ended by zeros, wherever it is.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let rest = &module[at + KEY.len()..];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(0);
    String::from_utf8_lossy(&rest[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(normal)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_known_by_its_name_whatever_its_compression() {
        for path in ["kernel/net/a-b.ko", "a_b.ko.xz", "x/a-b.ko.zst"] {
            assert_eq!(module_name(path.as_ref()).as_deref(), Some("a_b"), "{path}");
        }
        assert_eq!(module_name("modules.order".as_ref()), None);
    }

    #[test]
    fn a_module_says_on_what_it_depends() {
        let module = b"\x7fELF\0license=GPL\0depends=virtio-x,vsock\0name=y\0";
        assert_eq!(depends(module), ["virtio_x", "vsock"]);
        assert_eq!(depends(b"\0depends=\0name=y\0"), Vec::<String>::new());
        assert_eq!(depends(b"nothing"), Vec::<String>::new());
    }
}
