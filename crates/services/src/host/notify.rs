//! The notification service: receives messages from the service managers of guests.
//!
//! A service manager configured with this service's address (systemd's `vmm.notify_socket`) reports
//! its startup with the protocol of sd_notify(3). For each message it opens a connection, writes
//! lines `KEY=VALUE`, shuts down writing, and waits until the host closes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hvsock::Peer;
use hvsock::tokio::HvStream;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::catalog::NOTIFY;
use crate::link::ServiceServer;
use crate::text::truncated;

/// The largest message, in bytes.
const LARGEST: u64 = 8 * 1024;

/// How long a message may take to arrive.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The longest key and value, in bytes. A longer key is ignored, a longer value is truncated.
const KEY: usize = 64;
const VALUE: usize = 256;

/// The most `X_` variables of one message.
const MORE: usize = 32;

/// A notification.
#[doc(alias = "sd_notify")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// `READY=1`: the guest has started.
    pub ready: bool,
    /// `STOPPING=1`: the guest is shutting down.
    pub stopping: bool,
    /// `STATUS=`: a status text for people.
    pub status: Option<String>,
    /// `ERRNO=`: the reason of a failure.
    pub errno: Option<u32>,
    /// `EXIT_STATUS=`: the exit status that the guest wants for its machine.
    pub exit_status: Option<u32>,
    /// The variables whose names begin with `X_`.
    pub more: BTreeMap<String, String>,
}

impl Notice {
    /// Parses a message. Unknown or invalid lines are ignored. The last value of a repeated key
    /// counts, except that one `READY=1` or `STOPPING=1` is enough.
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
            _ if is_extra(key) && self.has_capacity(key) => {
                self.more.insert(key.to_owned(), short(value));
            }
            // MAINPID, WATCHDOG and so on are meant for a process manager.
            _ => {}
        }
    }

    fn has_capacity(&self, key: &str) -> bool {
        self.more.len() < MORE || self.more.contains_key(key)
    }
}

fn is_extra(key: &str) -> bool {
    let fits = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
    key.starts_with("X_") && key.len() <= KEY && key.bytes().all(fits)
}

fn short(value: &str) -> String {
    truncated(value, VALUE).to_owned()
}

/// The service. It passes each message to `notify`, which must not block.
pub fn server(notify: impl Fn(&Peer, Notice) + Send + Sync + 'static) -> ServiceServer {
    let notify = Arc::new(notify);
    ServiceServer::streams(&NOTIFY, move |stream| {
        let notify = Arc::clone(&notify);
        async move {
            let Some(guest) = stream.peer().cloned() else {
                return;
            };
            // An incomplete message is ignored.
            if let Ok(Some(message)) = timeout(TIMEOUT, message(stream)).await {
                notify(&guest, Notice::parse(&message));
            }
        }
    })
}

/// Reads to the end, then closes the connection, which acknowledges the message to the guest.
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
    fn systemd_messages_are_parsed() {
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
        fn every_message_is_bounded(
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
