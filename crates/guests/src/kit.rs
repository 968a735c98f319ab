//! The programs and the kernel that guests are made of.

use std::io;
use std::path::PathBuf;

use crate::error::Missing;
use crate::kernel::Kernel;
use crate::vmm::Vmm;
use crate::{modules, program, tools};

/// What runs the guest, a kernel, and busybox.
#[derive(Debug, Clone)]
pub struct Kit {
    /// The kind of VMM.
    pub vmm: Vmm,
    /// The VMM's program.
    pub program: PathBuf,
    /// The kernel with its modules.
    pub kernel: Kernel,
    /// A statically linked busybox.
    pub busybox: PathBuf,
}

impl Kit {
    /// Locates all parts of a guest under the first VMM of [`Vmm::ALL`] that is installed.
    ///
    /// # Errors
    ///
    /// As [`find_for`](Self::find_for). If there is neither VMM, the command that installs the preferred one,
    /// and that for the others.
    pub fn find() -> Result<Self, Missing> {
        let mut all = Vec::new();
        for vmm in Vmm::ALL {
            match Self::find_for(vmm) {
                // A variable of the environment chooses a program, which must be there.
                Err(missing) if !missing.is_misconfigured() => all.push(missing),
                found => return found,
            }
        }
        let whats: Vec<_> = all.iter().map(|missing| missing.what.as_str()).collect();
        let advice: Vec<_> = Vmm::ALL
            .iter()
            .map(|vmm| format!("{} with `{}`", vmm.name(), vmm.install()))
            .collect();
        Err(Missing {
            what: whats.join(", and "),
            advice: format!("install {}", advice.join(", or ")),
        })
    }

    /// Locates all parts of a guest under a VMM. Environment variables override the paths:
    /// `HVSOCK_GUEST_BUSYBOX`, and
    ///
    /// - for User-mode Linux `HVSOCK_GUEST_UML` (the kernel, `linux.uml`) and `HVSOCK_GUEST_UML_MODULES`
    ///   (the folder of its modules),
    /// - for QEMU `HVSOCK_GUEST_QEMU`, and those of [`Kernel::find`].
    ///
    /// # Errors
    ///
    /// [`Missing`], with the command that installs the missing part.
    pub fn find_for(vmm: Vmm) -> Result<Self, Missing> {
        Self::locate(vmm, false)
    }

    /// As [`find_for`](Self::find_for), but downloads a missing kernel of QEMU's guests: see
    /// [`Kernel::fetch`].
    ///
    /// # Errors
    ///
    /// [`Missing`], with the command that installs the missing part.
    pub fn find_or_fetch(vmm: Vmm) -> Result<Self, Missing> {
        Self::locate(vmm, true)
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

    fn locate(vmm: Vmm, fetch: bool) -> Result<Self, Missing> {
        let (program, kernel) = vmm.driver().find(fetch)?;
        Ok(Self {
            vmm,
            program,
            kernel,
            busybox: static_busybox(vmm)?,
        })
    }
}

fn static_busybox(vmm: Vmm) -> Result<PathBuf, Missing> {
    let missing = |why| Missing::package(why, "busybox-static", vmm.install());
    let busybox = tools::program("HVSOCK_GUEST_BUSYBOX", "busybox").map_err(missing)?;
    // It has an ELF interpreter if it is dynamically linked.
    if program::interpreter(&busybox).is_ok_and(|interpreter| interpreter.is_some()) {
        return Err(missing(format!(
            "{} is not statically linked",
            busybox.display()
        )));
    }
    Ok(busybox)
}
