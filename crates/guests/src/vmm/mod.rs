//! What guests run under.
//!
//! Each VMM is a [`Driver`] in a file or folder of its own, and a variant of [`Vmm`].

mod driver;
mod qemu;
mod uml;

pub(crate) use driver::{Boot, Connect, Control, Driver, Prepared, SPARE_MONITOR, Started};

/// A virtual machine monitor that guests run under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Vmm {
    /// User-mode Linux: a Linux kernel as a program. It boots in a second and runs at nearly native speed.
    Uml,
    /// QEMU, which emulates a machine, or runs it by KVM.
    Qemu,
}

impl Vmm {
    /// All, the preferred one first.
    pub const ALL: [Self; 2] = [Self::Uml, Self::Qemu];

    pub(crate) fn driver(self) -> &'static dyn Driver {
        match self {
            Self::Uml => &uml::Uml,
            Self::Qemu => &qemu::Qemu,
        }
    }

    /// Its name in messages.
    pub fn name(self) -> &'static str {
        self.driver().name()
    }

    /// The command that installs all that its guests need, on Debian and its derivatives.
    pub fn install(self) -> &'static str {
        self.driver().install()
    }

    /// Whether it can pause and reset a guest from outside, and tells the device of it.
    pub fn can_pause(self) -> bool {
        self.driver().can_pause()
    }
}
