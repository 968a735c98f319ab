//! The text protocol: connections and listeners for programs that know only Unix stream sockets.
//!
//! A program connects to the socket `text` beside its endpoint and writes one line, such as
//! `CONNECT parent HV Socket Demo`. The broker answers with a line that begins with `OK` or `ERR`. After `OK` the
//! socket carries the bytes of a connection, or stays open as a listener. `docs/text.md` has the grammar.
//!
//! [`TextRequestReader`] reads a request in the pieces in which it arrives, [`TextRequest::parse`] a whole one.
//! [`TextReply`] is the answer.

mod reply;
mod request;

pub use reply::{InvalidTextReply, TextReply};
pub use request::{
    InvalidTextRequest, ListenerToken, TextConnect, TextListen, TextPartition, TextRequest,
    TextRequestReader,
};

/// The most bytes of a line, with its newline.
pub const MAX_TEXT_LINE: usize = 4096;
