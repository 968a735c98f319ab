//! The broker's virtio-vsock device, driven by guests at native speed.

mod talking;
mod world;
