//! Values in the frames.

use crate::DecodeError;

/// A container of a guest, by the number that its broker has given it. 0 is the virtual machine itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChildId(pub u32);

impl ChildId {
    /// The virtual machine itself.
    pub const MACHINE: Self = Self(0);
}

/// A request that is answered, by a number that its sender chooses. Each side has numbers of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Request(pub u64);

/// The state of a container, as its broker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ChildState {
    /// It has not been started.
    Defined = 1,
    /// It runs.
    Running = 2,
    /// It is paused.
    Paused = 3,
    /// It has ended.
    Exited = 4,
    /// Nobody says whether it runs.
    Unknown = 5,
}

impl ChildState {
    /// All states.
    pub const ALL: [Self; 5] = [
        Self::Defined,
        Self::Running,
        Self::Paused,
        Self::Exited,
        Self::Unknown,
    ];

    pub(super) fn decode(value: u32) -> Result<Self, DecodeError> {
        let found = Self::ALL.into_iter().find(|state| *state as u32 == value);
        found.ok_or(DecodeError::Value {
            field: "state",
            value: value.into(),
        })
    }
}

/// What is to be explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum What {
    /// A connect.
    Connect = 1,
    /// A listen.
    Listen = 2,
}

impl What {
    pub(super) fn decode(value: u32) -> Result<Self, DecodeError> {
        match value {
            1 => Ok(Self::Connect),
            2 => Ok(Self::Listen),
            _ => Err(DecodeError::Value {
                field: "what",
                value: value.into(),
            }),
        }
    }
}

/// Who in a machine may listen for a service of its host's registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum BindScope {
    /// Nobody.
    #[default]
    Nobody = 0,
    /// Root.
    Root = 1,
    /// Every user.
    Everyone = 2,
}

/// What a host allows its guest to do with a service.
///
/// Bit 0: enabled; bit 1: the guest may connect; bits 2 and 3: who may [listen](BindScope); bit 4: listeners at
/// the wildcard are allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ServiceFlags {
    /// The service is enabled for the guest.
    pub enabled: bool,
    /// The guest may connect.
    pub may_connect: bool,
    /// Who in the guest may listen.
    pub bind: BindScope,
    /// Listeners at the wildcard are allowed.
    pub wildcard: bool,
}

impl ServiceFlags {
    pub(super) fn bits(self) -> u32 {
        u32::from(self.enabled)
            | u32::from(self.may_connect) << 1
            | (self.bind as u32) << 2
            | u32::from(self.wildcard) << 4
    }

    pub(super) fn decode(bits: u32) -> Result<Self, DecodeError> {
        let invalid = DecodeError::Value {
            field: "flags",
            value: bits.into(),
        };
        if bits >> 5 != 0 {
            return Err(invalid);
        }
        let bind = match bits >> 2 & 3 {
            0 => BindScope::Nobody,
            1 => BindScope::Root,
            2 => BindScope::Everyone,
            _ => return Err(invalid),
        };
        Ok(Self {
            enabled: bits & 1 != 0,
            may_connect: bits & 2 != 0,
            bind,
            wildcard: bits & 16 != 0,
        })
    }
}
