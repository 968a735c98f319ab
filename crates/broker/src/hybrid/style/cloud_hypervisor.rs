//! Cloud Hypervisor since v53: Firecracker's muxer, with half-close (cloud-hypervisor#8372). A VM of an
//! older version needs Firecracker's style.

use super::features::{Connects, Style};

pub(super) const STYLE: Style = Style {
    connects: Connects::ByLine,
    has_guids: false,
    half_close: true,
};
