//! Hearing the service managers of guests.
//!
//! A service manager that was given an address of ours (`vmm.notify_socket` of systemd) tells of its
//! start in the protocol of sd_notify(3): for each message it makes a connection, writes lines
//! `KEY=VALUE`, ends it, and waits until the host does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hvsock::Peer;
use hvsock::tokio::HvStream;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::catalog::NOTIFY;
use crate::link::Offer;

/// Bytes of a message.
const LARGEST: u64 = 8 * 1024;

/// How long a message may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of a key and of a value; a longer value is cut.
const KEY: usize = 64;
const VALUE: usize = 256;

/// Further variables of one message.
const MORE: usize = 32;

/// One message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// `READY=1`: the guest has started.
    pub ready: bool,
    /// `STOPPING=1`: it goes down.
    pub stopping: bool,
    /// `STATUS=`, in words for people.
    pub status: Option<String>,
    /// `ERRNO=`, why it failed.
    pub errno: Option<u32>,
    /// `EXIT_STATUS=`, with which the guest wants its machine to end.
    pub exit_status: Option<u32>,
    /// Those whose names begin with `X_`.
    pub more: BTreeMap<String, String>,
}

impl Notice {
    /// What a message says; what is not understood says nothing. Of a key that comes twice the last
    /// one holds.
    pub fn parse(message: &[u8]) -> Self {
        let mut notice = Self::default();
        for line in message.split(|byte| *byte == b'\n') {
            let Ok(line) = std::str::from_utf8(line) else {
                continue;
            };
            if let Some((key, value)) = line.split_once('=') {
                notice.take(key, value);
            }
        }
        notice
    }

    fn take(&mut self, key: &str, value: &str) {
        match key {
            "READY" => self.ready |= value == "1",
            "STOPPING" => self.stopping |= value == "1",
            "STATUS" => self.status = Some(short(value)),
            "ERRNO" => self.errno = value.parse().ok(),
            "EXIT_STATUS" => self.exit_status = value.parse().ok(),
            _ if is_further(key) && self.has_room(key) => {
                self.more.insert(key.to_owned(), short(value));
            }
            // MAINPID, WATCHDOG and so on are for a manager of processes.
            _ => {}
        }
    }

    fn has_room(&self, key: &str) -> bool {
        self.more.len() < MORE || self.more.contains_key(key)
    }
}

fn is_further(key: &str) -> bool {
    let fits = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
    key.starts_with("X_") && key.len() <= KEY && key.bytes().all(fits)
}

fn short(value: &str) -> String {
    value[..value.floor_char_boundary(VALUE)].to_owned()
}

/// The service, which hands each message to `hear`. That must not wait.
pub fn offer(hear: impl Fn(&Peer, Notice) + Send + Sync + 'static) -> Offer {
    let hear = Arc::new(hear);
    Offer::streams(&NOTIFY, move |stream| {
        let hear = Arc::clone(&hear);
        async move {
            let Some(guest) = stream.peer().cloned() else {
                return;
            };
            // A message that is not whole is none.
            if let Ok(Some(message)) = timeout(PATIENCE, message(stream)).await {
                hear(&guest, Notice::parse(&message));
            }
        }
    })
}

/// Reads to the end, and ends the connection by that, which tells the guest that it was heard.
async fn message(stream: HvStream) -> Option<Vec<u8>> {
    let mut message = Vec::new();
    let mut limited = stream.take(LARGEST + 1);
    let read = limited.read_to_end(&mut message).await.ok()?;
    (read as u64 <= LARGEST).then_some(message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_systemd_says_is_understood() {
        let message = b"READY=1\nSTATUS=Startup finished in 5.1s.\nMAINPID=1\n\
            X_SYSTEMD_UNIT_ACTIVE=basic.target\nX_SYSTEMD_UNIT_ACTIVE=multi-user.target\n";
        let notice = Notice::parse(message);
        assert!(notice.ready && !notice.stopping);
        assert_eq!(notice.status.as_deref(), Some("Startup finished in 5.1s."));
        let unit = notice.more.get("X_SYSTEMD_UNIT_ACTIVE");
        assert_eq!(unit.map(String::as_str), Some("multi-user.target"));
        assert_eq!(notice.more.len(), 1);
        let notice = Notice::parse(b"STOPPING=1\nEXIT_STATUS=7\nERRNO=2\nREADY=0");
        let want = Notice {
            stopping: true,
            exit_status: Some(7),
            errno: Some(2),
            ..Notice::default()
        };
        assert_eq!(notice, want);
    }

    proptest! {
        #[test]
        fn no_message_is_more_than_fits(
            noise in proptest::collection::vec(any::<u8>(), 0..2000),
            lines in proptest::collection::vec("(X_[A-Z]{0,80}|STATUS|ERRNO|READY)=\\PC{0,400}", 0..100),
        ) {
            let mut message = lines.join("\n").into_bytes();
            message.push(b'\n');
            message.extend(noise);
            let notice = Notice::parse(&message);
            prop_assert!(notice.more.len() <= MORE);
            let texts = notice.more.iter().flat_map(|(key, value)| {
                assert!(key.len() <= KEY);
                [value]
            });
            prop_assert!(texts.chain(&notice.status).all(|text| text.len() <= VALUE));
        }
    }
}
