//! One case of the suite.

use super::transport::Transport;

/// One case. It fails by a panic.
pub(super) struct Case<T> {
    pub name: &'static str,
    /// Whether the transport has the capability that the case needs.
    pub supported: fn(&T) -> bool,
    pub body: fn(&T),
}

impl<T: Transport> Case<T> {
    /// A case for every transport.
    pub fn new(name: &'static str, body: fn(&T)) -> Self {
        Self::needs(name, |_| true, body)
    }

    /// A case for transports with a capability.
    pub fn needs(name: &'static str, supported: fn(&T) -> bool, body: fn(&T)) -> Self {
        Self {
            name,
            supported,
            body,
        }
    }
}
