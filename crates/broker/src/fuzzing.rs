//! What the fuzz targets (`fuzz/`) run, where the API of the crate has no such function. No part of that API.

use std::path::Path;
use std::time::{Duration, Instant};

use hvsock_endpoint::uplink::{FrameReader, GuestFrame, HostFrame};
use hvsock_registry::entry_folder::EntryKind;

use crate::stores::PartitionKinds;
use crate::uplink::UplinkSession;

pub use crate::api::fuzzing::Control;
pub use crate::vhost_user::fuzzing::memory_table;

/// Decodes the file of a partition. What is written for it must be decoded as the same partition.
pub fn partition_file(bytes: &[u8]) {
    let (path, name) = (Path::new("web.toml"), "web".to_owned());
    if let Ok(read) = PartitionKinds::decode(path, &name, bytes, None) {
        let text = PartitionKinds::text(&read, None);
        let again = PartitionKinds::decode(path, &name, text.as_bytes(), None);
        assert_eq!(again.as_ref().ok(), Some(&read), "{text}");
    }
}

/// Gives the host's side of an uplink the frames of a hostile guest, each after so many milliseconds as `pauses` says.
pub fn uplink_guest(pauses: &[u8], bytes: &[u8]) {
    let mut now = Instant::now();
    let mut session = UplinkSession::new(now);
    let mut reader = FrameReader::new();
    reader.add(bytes);
    for pause in pauses.iter().chain(std::iter::repeat(&0)) {
        let Ok(Some(message)) = reader.next() else {
            return;
        };
        now += Duration::from_millis(u64::from(*pause) * 64);
        if session.expire(now).is_err() {
            return;
        }
        if let Ok(frame) = GuestFrame::decode(message) {
            let Ok(for_core) = session.receive(frame, now) else {
                return;
            };
            // The core answers, here with what the session cancels by number.
            if let Some(GuestFrame::Cancel { request }) = for_core
                && session.send(HostFrame::Cancel { request }).is_err()
            {
                return;
            }
        }
        if pause % 2 == 0 {
            while session.next_frame().is_some() {}
        }
        session.wrote(u64::from(*pause), usize::from(pause % 3), now);
        assert!(
            session
                .next_deadline(now)
                .is_none_or(|at| at > now - Duration::from_secs(31))
        );
    }
}

/// Gives the guest's side of an uplink the frames of a hostile host.
pub fn uplink_host(pauses: &[u8], bytes: &[u8]) {
    crate::uplink_client::fuzz(pauses, bytes);
}
