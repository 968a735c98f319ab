//! The programs and the kernel that guests are made of.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{INSTALL, Missing};
use crate::kernel::Kernel;
use crate::{modules, tools};

/// What runs a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vmm {
    /// QEMU, `qemu-system-x86_64`, at this path.
    Qemu(PathBuf),
    /// User-mode Linux. Its kernel is the program.
    UserModeLinux,
}

impl Vmm {
    /// Its name in messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Qemu(_) => "QEMU",
            Self::UserModeLinux => "User-mode Linux",
        }
    }
}

/// What runs the guest, a kernel, and busybox.
#[derive(Debug, Clone)]
pub struct Kit {
    /// What runs the guest.
    pub vmm: Vmm,
    /// The kernel with its modules.
    pub kernel: Kernel,
    /// A statically linked busybox.
    pub busybox: PathBuf,
}

impl Kit {
    /// Locates all parts of a guest under QEMU. Environment variables override the paths: `HVSOCK_GUEST_QEMU`,
    /// `HVSOCK_GUEST_BUSYBOX`, and those of [`Kernel::find`].
    ///
    /// # Errors
    ///
    /// [`Missing`], with the command that installs the missing part.
    pub fn find() -> Result<Self, Missing> {
        let mut kit = Self::without_kernel()?;
        kit.kernel = Kernel::find()?;
        Ok(kit)
    }

    /// Locates all parts of a guest in User-mode Linux. Environment variables override the paths:
    /// `HVSOCK_GUEST_UML` (the kernel, `linux.uml`), `HVSOCK_GUEST_UML_MODULES` (the folder of its
    /// modules) and `HVSOCK_GUEST_BUSYBOX`.
    ///
    /// # Errors
    ///
    /// [`Missing`], with the command that installs the missing part.
    pub fn find_uml() -> Result<Self, Missing> {
        let linux = program("HVSOCK_GUEST_UML", &["linux.uml"])
            .map_err(|why| missing(why, "apt-get install user-mode-linux"))?;
        let kernel = Kernel::user_mode(linux)
            .map_err(|why| missing(why, "apt-get install user-mode-linux"))?;
        Ok(Self {
            vmm: Vmm::UserModeLinux,
            kernel,
            busybox: static_busybox()?,
        })
    }

    /// As [`find`](Self::find), but downloads a missing kernel: see [`Kernel::fetch`].
    ///
    /// # Errors
    ///
    /// [`Missing`], with the command that installs the missing part.
    pub fn find_or_fetch() -> Result<Self, Missing> {
        let mut kit = Self::without_kernel()?;
        kit.kernel = Kernel::find().or_else(|_| Kernel::fetch())?;
        Ok(kit)
    }

    /// The decompressed content of a kernel module, without its dependencies, for a guest that loads it
    /// itself.
    ///
    /// # Errors
    ///
    /// The kernel does not have the module or has it built in, or its file cannot be read or decompressed.
    pub fn module(&self, name: &str) -> io::Result<Vec<u8>> {
        let modules = modules::resolve(&self.kernel, &self.busybox, &[name], &[])?;
        let module = modules.into_iter().next_back();
        let module = module.ok_or_else(|| {
            io::Error::other(format!(
                "{name} is built into the kernel, so there is no module"
            ))
        })?;
        Ok(module.content)
    }

    fn without_kernel() -> Result<Self, Missing> {
        let qemu = program("HVSOCK_GUEST_QEMU", &["qemu-system-x86_64"])
            .map_err(|why| missing(why, "apt-get install qemu-system-x86"))?;
        Ok(Self {
            vmm: Vmm::Qemu(qemu),
            kernel: Kernel::default(),
            busybox: static_busybox()?,
        })
    }
}

fn static_busybox() -> Result<PathBuf, Missing> {
    let busybox = program("HVSOCK_GUEST_BUSYBOX", &["busybox"])
        .map_err(|why| missing(why, "apt-get install busybox-static"))?;
    if is_dynamic(&busybox) {
        let why = format!("{} is not statically linked", busybox.display());
        return Err(missing(why, "apt-get install busybox-static"));
    }
    Ok(busybox)
}

fn program(variable: &str, names: &[&str]) -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os(variable).filter(|value| !value.is_empty()) {
        let path = PathBuf::from(path);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(format!("{variable} is not a file: {}", path.display()))
        };
    }
    let found = names.iter().find_map(|name| tools::find(name));
    found.ok_or_else(|| format!("{} is not installed", names.join(" or ")))
}

fn missing(what: String, advice: &str) -> Missing {
    let advice = if what.starts_with("HVSOCK_") {
        "correct it or unset it".to_owned()
    } else {
        format!("install it with `{advice}` (everything for guests: `{INSTALL}`)")
    };
    Missing { what, advice }
}

/// Whether a program is dynamically linked: it has an ELF interpreter.
fn is_dynamic(program: &Path) -> bool {
    crate::program::interpreter(program).is_ok_and(|interpreter| interpreter.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_reported_with_the_command_that_installs_it() {
        let why = missing(
            "busybox is not installed".into(),
            "apt-get install busybox-static",
        );
        let text = why.to_string();
        assert!(
            text.contains("busybox is not installed; install it with `apt-get"),
            "{text}"
        );
        assert!(!text.contains('\n'));
    }
}
