//! Which file or folder an entry is, for two ends that may share one.

use std::sync::OnceLock;

use rustix::fs::Stat;
use twox_hash::XxHash3_128;

/// A hash of the device and the inode: the same for all names of one file of this machine.
#[allow(
    clippy::unnecessary_cast,
    reason = "the types differ between architectures"
)]
pub(super) fn local(stat: &Stat) -> u64 {
    hash(&[], stat.st_dev as u64, stat.st_ino as u64)
}

/// The identity of a file for the other end: the same at both ends if they share a kernel and mean
/// the same file. 0 if it is unknown. A container shares the kernel of its host, and often folders.
#[allow(
    clippy::unnecessary_cast,
    reason = "the types differ between architectures"
)]
pub(super) fn shared(stat: &Stat) -> u64 {
    match boot_id() {
        "" => 0,
        boot_id => hash(boot_id.as_bytes(), stat.st_dev as u64, stat.st_ino as u64),
    }
}

fn hash(boot_id: &[u8], device: u64, inode: u64) -> u64 {
    let mut hash = XxHash3_128::new();
    hash.write(boot_id);
    hash.write(&device.to_le_bytes());
    hash.write(&inode.to_le_bytes());
    (hash.finish_128() as u64).max(1)
}

/// The random id of the running kernel, or nothing.
fn boot_id() -> &'static str {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    BOOT_ID.get_or_init(|| {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        id.unwrap_or_default().trim().to_owned()
    })
}
