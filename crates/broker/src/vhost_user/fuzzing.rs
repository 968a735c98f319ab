//! What the fuzz targets run of the vhost-user back end.

use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::mem_table;

/// Reads the bytes of a VMM as a memory table.
pub fn memory_table(bytes: &[u8]) {
    let Ok((back, mut front)) = UnixStream::pair() else {
        return;
    };
    // What does not fit into the socket's buffer is longer than any message.
    let _ = front.set_nonblocking(true);
    let _ = front.write(bytes);
    let _ = front.shutdown(Shutdown::Write);
    if mem_table::is_next(&back).unwrap_or(false)
        && let Ok(table) = mem_table::receive(&back)
    {
        assert_eq!(table.regions.len(), table.files.len());
    }
}
