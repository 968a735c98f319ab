//! What the fuzz targets run of the guest's side of the uplink.

use std::time::{Duration, Instant};

use hvsock_address::{ServiceId, VmId};
use hvsock_endpoint::uplink::{ChildState, FrameReader, HostFrame};
use hvsock_fabric::ConnectionId;

use super::client::{Client, Output};
use super::event::WhyDown;

/// The most outputs of one step.
const MAX_OUTPUTS: usize = 20_000;

/// Gives a client the frames of a host, each after so many milliseconds as `pauses` says. A pause also chooses what
/// the core wants meanwhile.
pub(crate) fn host_frames(pauses: &[u8], bytes: &[u8]) {
    let mut now = Instant::now();
    let mut client = Client::new([1; 16], 5, now);
    let mut reader = FrameReader::new();
    reader.add(bytes);
    let mut is_connected = false;
    for (number, pause) in (1..).zip(pauses.iter().chain(std::iter::repeat(&1))) {
        now += Duration::from_millis(u64::from(*pause) * 16);
        client.timeout(now);
        let deadline = now + Duration::from_secs(9);
        let child = VmId::of_container(if pause % 16 < 8 { "a" } else { "b" });
        match pause % 8 {
            0 => client.add_child(child, "a".to_owned(), ChildState::Running),
            2 => client.remove_child(child),
            4 | 5 => {
                let child = (pause % 2 == 0).then_some(child);
                let id = ConnectionId::from_u64(number);
                client.connect(now, id, child, ServiceId::from_port(7), deadline);
            }
            6 => drop(client.sync(number)),
            _ => {}
        }
        for _ in 0..MAX_OUTPUTS {
            match client.next() {
                Some(Output::Dial) => {
                    is_connected = true;
                    client.connected(now);
                }
                Some(Output::HangUp) => is_connected = false,
                Some(Output::Connect { id, .. }) => client.stream_done(now, id),
                Some(Output::Listen { request }) => client.listening(request, Ok(1 << 24)),
                Some(_) => {}
                None => break,
            }
        }
        assert!(client.next().is_none(), "a step has no end");
        match reader.next() {
            Ok(Some(message)) if is_connected => {
                if let Ok(frame) = HostFrame::decode(message) {
                    client.frame(now, frame);
                }
            }
            Ok(Some(_)) => {}
            _ => break,
        }
    }
    client.lost(now, WhyDown::NoBroker);
    assert!(!client.is_open());
}
