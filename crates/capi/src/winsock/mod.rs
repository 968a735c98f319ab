//! The calls of Windows Sockets on descriptors of the program.
//!
//! A `SOCKET` is a Unix stream socket from the start, so that poll, epoll and the options of the kernel work before it is
//! connected. [`table`] knows which descriptors are sockets of this library, by their inodes: a number that the program
//! has closed by `close` and got again for a file is none. [`socket`] has the states and what each call does in them.
//!
//! | state | what the descriptor is |
//! |---|---|
//! | unconnected, bound | an unconnected Unix stream socket |
//! | connecting, in non-blocking mode | the same, connected to the broker and not writable yet |
//! | connected | the data of the connection, with the semantics of RAW_FD: its end is a clean end |
//! | listening | the endpoint connection of the listener, readable when there is a connection |
//!
//! Sending and receiving are one system call. What the kernel cannot say (whether an end of file is a reset, and why)
//! is asked of the broker's messages ([`control`]) after it. [`calls`] ends those of other threads at a close.

pub(crate) mod attach;
pub(crate) mod calls;
pub(crate) mod connection;
pub(crate) mod control;
pub(crate) mod listening;
pub(crate) mod socket;
pub(crate) mod table;
