//! Windows: the system's own Hyper-V sockets.
