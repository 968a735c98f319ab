//! The kernel modules that a guest loads, in the order of their dependencies.
//!
//! Dependencies are read from the modules (`depends=` in `.modinfo`), so this works for a package that was
//! only unpacked and never indexed by `depmod`.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::kernel::Kernel;
use crate::tools;

/// A decompressed module.
#[derive(Debug)]
pub struct Module {
    pub name: String,
    pub content: Vec<u8>,
}

/// The named modules and their dependencies, dependencies first. Modules built into the kernel are left out,
/// and so are `optional` ones that the kernel does not have.
pub fn resolve(
    kernel: &Kernel,
    busybox: &Path,
    required: &[&str],
    optional: &[&str],
) -> io::Result<Vec<Module>> {
    let mut resolver = Resolver {
        kernel,
        busybox,
        built_in: built_in(&kernel.modules)?,
        files: BTreeMap::new(),
        seen: HashSet::new(),
        order: Vec::new(),
    };
    collect(&kernel.modules.join("kernel"), &mut resolver.files)?;
    for name in required {
        resolver.add(name, true)?;
    }
    for name in optional {
        resolver.add(name, false)?;
    }
    Ok(resolver.order)
}

struct Resolver<'a> {
    kernel: &'a Kernel,
    /// Decompresses the files.
    busybox: &'a Path,
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
                    self.kernel.image.display()
                )));
            }
            return Ok(());
        };
        let content = decompressed(self.busybox, file)?;
        for dependency in depends(&content) {
            self.add(&dependency, true)?;
        }
        self.order.push(Module { name, content });
        Ok(())
    }
}

/// `-` and `_` are equivalent in module names.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// The module name of a path: `kernel/net/vsock.ko.xz` is `vsock`.
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
        // busybox cannot decompress zstd.
        "zst" => match tools::find("zstd") {
            Some(zstd) => tools::output(tools::command(&zstd, &["-dcq"]).arg(file)),
            None => Err(io::Error::other(
                "the kernel's modules are compressed by zstd; install it with `apt-get install zstd`",
            )),
        },
        other => Err(io::Error::other(format!(
            "{}: unknown compression .{other}",
            file.display()
        ))),
    }
}

/// The names in `depends=` of `.modinfo`, a section of NUL-terminated strings.
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
    fn module_names_are_independent_of_the_compression() {
        for path in ["kernel/net/a-b.ko", "a_b.ko.xz", "x/a-b.ko.zst"] {
            assert_eq!(module_name(path.as_ref()).as_deref(), Some("a_b"), "{path}");
        }
        assert_eq!(module_name("modules.order".as_ref()), None);
    }

    #[test]
    fn dependencies_are_read_from_the_module() {
        let module = b"\x7fELF\0license=GPL\0depends=virtio-x,vsock\0name=y\0";
        assert_eq!(depends(module), ["virtio_x", "vsock"]);
        assert_eq!(depends(b"\0depends=\0name=y\0"), Vec::<String>::new());
        assert_eq!(depends(b"nothing"), Vec::<String>::new());
    }
}
