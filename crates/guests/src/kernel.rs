//! Finding the kernel that guests boot, and downloading one.
//!
//! Debian's cloud kernel is preferred: it has virtio built in and boots in half the time of the generic
//! one. An unpacked package is sufficient, so root is not needed and no boot loader is changed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Missing;
use crate::tools;

/// A kernel and its modules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kernel {
    /// The compressed image, a `vmlinuz`, or the program of User-mode Linux.
    pub image: PathBuf,
    /// The folder of its modules, with `kernel` and `modules.builtin`.
    pub modules: PathBuf,
}

/// The command that installs a kernel on Debian and its derivatives.
const INSTALL: &str = "apt-get install linux-image-cloud-amd64";

/// Folders of modules, below a root.
const MODULES: [&str; 2] = ["lib/modules", "usr/lib/modules"];

/// Debian's metapackages for [`Kernel::fetch`], in order of preference.
const PACKAGES: [&str; 2] = ["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"];

impl Kernel {
    /// Finds a kernel. `HVSOCK_GUEST_KERNEL` (an image) and `HVSOCK_GUEST_MODULES` (its modules' folder)
    /// have priority. Otherwise it chooses among the downloaded kernels and those in `/boot`: cloud
    /// kernels before others, then newer before older.
    ///
    /// # Errors
    ///
    /// [`Missing`] if there is no readable kernel with its modules, or a variable is invalid.
    pub fn find() -> Result<Self, Missing> {
        if let Some(image) = variable("HVSOCK_GUEST_KERNEL") {
            return Self::given(image, variable("HVSOCK_GUEST_MODULES"));
        }
        let mut unreadable = None;
        let mut found = Vec::new();
        let roots = std::iter::once(PathBuf::from("/")).chain(unpacked());
        for root in roots {
            for (version, kernel) in kernels_of(&root) {
                if fs::File::open(&kernel.image).is_ok() {
                    found.push((rank(&version), kernel));
                } else {
                    unreadable = Some(kernel.image);
                }
            }
        }
        // Versions compare by number, so the greatest is the newest.
        if let Some((_, kernel)) = found.into_iter().max_by(|a, b| a.0.cmp(&b.0)) {
            return Ok(kernel);
        }
        Err(match unreadable {
            Some(image) => Missing {
                what: format!("{} is not readable by this user", image.display()),
                advice: format!("run `chmod +r {}` as root", image.display()),
            },
            None => Missing {
                what: "no Linux kernel with its modules, neither in /boot nor downloaded".into(),
                advice: format!(
                    "install one with `{INSTALL}`, or set HVSOCK_GUEST_KERNEL and \
                     HVSOCK_GUEST_MODULES"
                ),
            },
        })
    }

    /// Downloads Debian's cloud kernel with `apt-get download` and unpacks it into the user's cache folder,
    /// where [`find`](Self::find) finds it: `HVSOCK_GUEST_CACHE`, or `hvsock/kernels` in
    /// `XDG_CACHE_HOME` or `~/.cache`.
    ///
    /// # Errors
    ///
    /// [`Missing`] if there is no cache folder, no package, or the download fails.
    pub fn fetch() -> Result<Self, Missing> {
        let cache = cache_folder()
            .ok_or_else(|| cannot_fetch("no cache folder: HOME is not set".into()))?;
        let mut error = None;
        for meta in PACKAGES {
            match Self::fetch_package(meta, &cache, &[]) {
                Ok(kernel) => return Ok(kernel),
                Err(why) => error = error.or(Some(why)),
            }
        }
        Err(error.unwrap_or_else(|| cannot_fetch("no package is known".into())))
    }

    /// Downloads the kernel that a metapackage of Debian depends on, such as `linux-image-cloud-amd64`, and
    /// unpacks it into a folder of its own in `cache`. `options` are passed to apt, for a release of Debian
    /// other than the installed one. A kernel that is there already is not downloaded again.
    ///
    /// # Errors
    ///
    /// [`Missing`] if there is no such package, or the download fails.
    pub fn fetch_package(meta: &str, cache: &Path, options: &[String]) -> Result<Self, Missing> {
        let package = image_package(meta, options).ok_or_else(|| {
            cannot_fetch(format!("apt-cache has no {meta} (run `apt-get update`)"))
        })?;
        let folder = cache.join(&package);
        unpack(&package, cache, &folder, options)
            .map_err(|error| cannot_fetch(format!("cannot download {package}: {error}")))?;
        let kernels = kernels_of(&folder);
        let kernel = kernels.into_iter().map(|(_, kernel)| kernel).next();
        kernel.ok_or_else(|| cannot_fetch(format!("{} contains no kernel", folder.display())))
    }

    /// The kernel with this image. Its modules are where its package has them.
    ///
    /// # Errors
    ///
    /// [`Missing`] if it is not a file, or has no modules.
    pub fn at(image: &Path) -> Result<Self, Missing> {
        Self::given(image.to_owned(), None)
    }

    /// The first two numbers of its version, from the name of its modules' folder.
    pub fn version(&self) -> Option<(u64, u64)> {
        let name = self.modules.file_name()?.to_str()?;
        let (_, numbers) = rank(name);
        Some((*numbers.first()?, *numbers.get(1)?))
    }

    /// The kernel of User-mode Linux at this path, with the modules of `HVSOCK_GUEST_UML_MODULES` or those
    /// of Debian's package.
    pub(crate) fn user_mode(image: PathBuf) -> Result<Self, String> {
        const FOLDER: &str = "/usr/lib/uml/modules";
        const VARIABLE: &str = "HVSOCK_GUEST_UML_MODULES";
        let is_modules = |folder: &PathBuf| folder.join("modules.builtin").is_file();
        if let Some(modules) = variable(VARIABLE) {
            return match is_modules(&modules) {
                true => Ok(Self { image, modules }),
                false => Err(format!("{VARIABLE} is not a folder of a kernel's modules")),
            };
        }
        // Each kernel's package has one folder; the newest is that of the installed program.
        let folders = paths_in(FOLDER.as_ref()).filter(is_modules);
        let newest = folders.max_by_key(|folder| {
            let name = folder.file_name().unwrap_or_default();
            rank(&name.to_string_lossy())
        });
        let modules = newest.ok_or_else(|| format!("no modules of User-mode Linux in {FOLDER}"))?;
        Ok(Self { image, modules })
    }

    fn given(image: PathBuf, modules: Option<PathBuf>) -> Result<Self, Missing> {
        let invalid = |what| Missing {
            what,
            advice: "correct it or unset it".into(),
        };
        if !image.is_file() {
            return Err(invalid(format!(
                "HVSOCK_GUEST_KERNEL is not a file: {}",
                image.display()
            )));
        }
        let beside = || {
            let folder = image.parent()?;
            if folder.join("modules.builtin").is_file() {
                return Some(folder.to_owned());
            }
            let version = version_of(&image)?;
            let root = image.parent()?.parent()?;
            modules_in(root, &version)
        };
        match modules.or_else(beside) {
            Some(modules) if modules.is_dir() => Ok(Self { image, modules }),
            _ => Err(invalid(
                "HVSOCK_GUEST_MODULES is not a folder of the kernel's modules".into(),
            )),
        }
    }
}

fn cannot_fetch(what: String) -> Missing {
    Missing {
        what,
        advice: format!("install a kernel with `{INSTALL}`"),
    }
}

fn variable(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty());
    value.map(PathBuf::from)
}

fn cache_folder() -> Option<PathBuf> {
    variable("HVSOCK_GUEST_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("hvsock/kernels")))
        .or_else(|| Some(variable("HOME")?.join(".cache/hvsock/kernels")))
}

/// The folders of downloaded packages.
fn unpacked() -> Vec<PathBuf> {
    let entries = cache_folder().and_then(|folder| fs::read_dir(folder).ok());
    let folders = entries.into_iter().flatten().flatten();
    folders.map(|entry| entry.path()).collect()
}

/// The kernels below a root folder that have an image and modules, with their versions. The image is in
/// `boot` or, in newer packages, beside the modules (installing them copies it).
fn kernels_of(root: &Path) -> Vec<(String, Kernel)> {
    let in_boot =
        paths_in(&root.join("boot")).filter_map(|image| Some((version_of(&image)?, image)));
    let beside_modules = MODULES
        .iter()
        .flat_map(|folder| paths_in(&root.join(folder)))
        .filter_map(|folder| Some((folder.file_name()?.to_str()?.to_owned(), folder)))
        .map(|(version, folder)| (version, folder.join("vmlinuz")))
        .filter(|(_, image)| image.is_file());
    in_boot
        .chain(beside_modules)
        .filter_map(|(version, image)| {
            let modules = modules_in(root, &version)?;
            Some((version, Kernel { image, modules }))
        })
        .collect()
}

fn paths_in(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

fn version_of(image: &Path) -> Option<String> {
    let name = image.file_name()?.to_str()?;
    name.strip_prefix("vmlinuz-").map(str::to_owned)
}

fn modules_in(root: &Path, version: &str) -> Option<PathBuf> {
    MODULES
        .iter()
        .map(|folder| root.join(folder).join(version))
        .find(|folder| folder.join("modules.builtin").is_file())
}

/// A sort key: cloud kernels are greater, then newer versions, number by number.
fn rank(version: &str) -> (bool, Vec<u64>) {
    let numbers = version.split(|c: char| !c.is_ascii_digit());
    (
        version.contains("cloud"),
        numbers.filter_map(|number| number.parse().ok()).collect(),
    )
}

/// The image package that a metapackage depends on.
fn image_package(meta: &str, options: &[String]) -> Option<String> {
    let depends = depends(meta, options).ok()?;
    depends
        .into_iter()
        .find(|package| package.starts_with("linux-image-"))
}

/// The package and, for newer kernels, the packages it is split into.
fn parts(package: &str, options: &[String]) -> io::Result<Vec<String>> {
    let kinds = ["linux-base-", "linux-binary-", "linux-modules-"];
    let mut parts = vec![package.to_owned()];
    let depends = depends(package, options)?.into_iter();
    parts.extend(depends.filter(|name| kinds.iter().any(|kind| name.starts_with(kind))));
    Ok(parts)
}

fn depends(package: &str, options: &[String]) -> io::Result<Vec<String>> {
    let apt_cache = tools::find("apt-cache");
    let apt_cache = apt_cache.ok_or_else(|| io::Error::other("apt-cache is not installed"))?;
    let mut command = tools::command(&apt_cache, &["depends", package]);
    let printed = tools::output(command.args(options))?;
    let printed = String::from_utf8_lossy(&printed);
    let lines = printed.lines();
    let depends = lines.filter_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(depends.map(str::to_owned).collect())
}

/// Downloads and unpacks into a temporary folder and renames it, so that an existing folder is complete.
fn unpack(package: &str, cache: &Path, folder: &Path, options: &[String]) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(cache)?;
    let [apt_get, dpkg_deb] = ["apt-get", "dpkg-deb"].map(|name| {
        tools::find(name).ok_or_else(|| io::Error::other(format!("{name} is not installed")))
    });
    let (apt_get, dpkg_deb) = (apt_get?, dpkg_deb?);
    let work = tempfile::Builder::new()
        .prefix("fetch-")
        .tempdir_in(cache)?;
    let download = ["--quiet=2", "-o", "Acquire::Retries=3", "download"];
    let mut download = tools::command(&apt_get, &download);
    let parts = parts(package, options)?;
    tools::output(download.args(options).args(parts).current_dir(work.path()))?;
    let tree = work.path().join("tree");
    let is_package = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "deb");
    for archive in paths_in(work.path()).filter(is_package) {
        tools::output(
            tools::command(&dpkg_deb, &["--extract"])
                .arg(&archive)
                .arg(&tree),
        )?;
    }
    match fs::rename(&tree, folder) {
        // Another process has created it meanwhile.
        Err(_) if folder.is_dir() => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cloud_kernels_and_newer_versions_are_preferred() {
        let mut versions = [
            "6.1.0-9-cloud-amd64",
            "6.12.117+deb12-cloud-amd64",
            "6.1.0-53-cloud-amd64",
            "7.0.1-amd64",
        ];
        versions.sort_by_key(|version| rank(version));
        assert_eq!(
            versions,
            [
                "7.0.1-amd64",
                "6.1.0-9-cloud-amd64",
                "6.1.0-53-cloud-amd64",
                "6.12.117+deb12-cloud-amd64",
            ]
        );
    }

    #[test]
    fn a_kernel_without_modules_is_not_found() {
        let root = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(root.path().join("boot")).expect("boot");
        fs::write(root.path().join("boot/vmlinuz-1.2"), "").expect("image");
        assert_eq!(kernels_of(root.path()), []);
        let modules = root.path().join("lib/modules/1.2");
        fs::create_dir_all(&modules).expect("modules");
        fs::write(modules.join("modules.builtin"), "").expect("builtin");
        let found = kernels_of(root.path());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1.modules, modules);
        assert_eq!(found[0].1.version(), Some((1, 2)));
        let image = root.path().join("boot/vmlinuz-1.2");
        assert_eq!(Kernel::given(image, None).expect("beside").modules, modules);
        let inside = modules.join("vmlinuz");
        fs::write(&inside, "").expect("image");
        assert_eq!(Kernel::at(&inside).expect("inside").modules, modules);
    }
}
