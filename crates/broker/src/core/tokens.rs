//! The tokens of the core thread's descriptors in epoll.
//!
//! Endpoints and sessions have tokens by their index, odd and even. The core thread's own connections
//! have those from [`CORE_SET_BASE`] on, and those of guests to the broker
//! itself the ones before, from [`UPLINK_BASE`] on; before those, from [`ATTACHING_BASE`] on, the sockets that wait
//! for a process's own, and from [`TEXT_BASE`] on the listeners of the text protocol.

use mio::Token;

/// The waker.
pub(super) const WAKE: Token = Token(0);
/// The first token of the core thread's own connections.
pub(super) const CORE_SET_BASE: usize = 1 << 48;
/// The first token of a guest's connection to the broker itself.
const UPLINK_BASE: usize = 1 << 47;

/// The first token of a socket that waits for a process's own.
const ATTACHING_BASE: usize = 1 << 46;

/// The first token of a listener of the text protocol.
const TEXT_BASE: usize = 1 << 45;

/// The source of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The waker: reports or calls are queued.
    Waker,
    /// An endpoint, by its index.
    Endpoint(usize),
    /// A session, by its index.
    Session(usize),
    /// A listener of the text protocol, by its index.
    Text(usize),
    /// A socket that waits for a process's own, by its index.
    Attaching(usize),
    /// A guest's connection to the broker itself, by its index.
    Uplink(usize),
    /// A connection of the core thread's own set.
    Connection,
}

impl From<Token> for Source {
    fn from(token: Token) -> Self {
        match token.0 {
            0 => Self::Waker,
            number if number >= CORE_SET_BASE => Self::Connection,
            number if number >= UPLINK_BASE => Self::Uplink(number - UPLINK_BASE),
            number if number >= ATTACHING_BASE => Self::Attaching(number - ATTACHING_BASE),
            number if number >= TEXT_BASE => Self::Text(number - TEXT_BASE),
            number if number % 2 == 1 => Self::Endpoint(number / 2),
            number => Self::Session(number / 2 - 1),
        }
    }
}

/// The token of an endpoint.
pub(super) fn endpoint_token(index: usize) -> Token {
    Token(index * 2 + 1)
}

/// The token of a session.
pub(super) fn session_token(index: usize) -> Token {
    Token((index + 1) * 2)
}

/// The token of a listener of the text protocol.
pub(super) fn text_token(index: usize) -> Token {
    Token(TEXT_BASE + index)
}

/// The token of a socket that waits for a process's own.
pub(super) fn attaching_token(index: usize) -> Token {
    Token(ATTACHING_BASE + index)
}

/// The token of a guest's connection to the broker itself.
pub(super) fn uplink_token(index: usize) -> Token {
    Token(UPLINK_BASE + index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_back_to_its_source() {
        for index in [0, 1, 2, 1 << 40] {
            let endpoint = Source::from(endpoint_token(index));
            assert_eq!(endpoint, Source::Endpoint(index));
            let session = Source::from(session_token(index));
            assert_eq!(session, Source::Session(index));
            let uplink = Source::from(uplink_token(index));
            assert_eq!(uplink, Source::Uplink(index));
            let text = Source::from(text_token(index));
            assert_eq!(text, Source::Text(index));
            let attaching = Source::from(attaching_token(index));
            assert_eq!(attaching, Source::Attaching(index));
        }
        assert_eq!(Source::from(WAKE), Source::Waker);
        for token in [CORE_SET_BASE, usize::MAX] {
            assert_eq!(Source::from(Token(token)), Source::Connection);
        }
    }
}
