//! The CDI devices of containers, as the files of the broker's folder last were.

use std::collections::HashMap;

use crate::model::CdiDevice;

/// The devices by their container's name.
#[derive(Debug, Default)]
pub(super) struct Devices(HashMap<String, CdiDevice>);

impl Devices {
    /// Records that a container has this device.
    pub(super) fn insert(&mut self, container: String, device: CdiDevice) {
        self.0.insert(container, device);
    }

    /// Records that a container has no device.
    pub(super) fn remove(&mut self, container: &str) {
        self.0.remove(container);
    }

    /// The device of a container.
    pub(super) fn get(&self, container: &str) -> Option<&CdiDevice> {
        self.0.get(container)
    }
}
