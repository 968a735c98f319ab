//! Lines of hybrid vsock: requests of a program or VMM, and replies of a VMM, in any pieces.

use hvsock_endpoint::{
    HybridReplyReader, HybridRequest, HybridRequestReader, MAX_HYBRID_REPLY, MAX_HYBRID_REQUEST,
};

use crate::target::Seed;

/// Reads the bytes as a request and as a reply. The first byte chooses the pieces.
pub(crate) fn run(bytes: &[u8]) {
    let Some((piece, line)) = bytes.split_first() else {
        return;
    };
    let size = usize::from(*piece).max(1);
    let whole = HybridRequestReader::default().read(line);
    if let Ok((count, Some(request))) = &whole {
        assert_eq!(HybridRequest::parse(&line[..*count]).as_ref(), Ok(request));
    }
    let (mut reader, mut total) = (HybridRequestReader::default(), 0);
    for piece in line.chunks(size) {
        match reader.read(piece) {
            Ok((count, None)) => total += count,
            Ok((count, request)) => {
                assert_eq!(whole, Ok((total + count, request)));
                break;
            }
            Err(_) => {
                assert!(whole.is_err(), "{whole:?}");
                break;
            }
        }
        assert!((1..=MAX_HYBRID_REQUEST).contains(&reader.wanted()));
    }
    let whole = HybridReplyReader::default().read(line);
    if let Ok((count, Some(reply))) = &whole {
        assert!(*count <= MAX_HYBRID_REPLY);
        assert!(reply.to_line().len() <= MAX_HYBRID_REPLY);
    }
    let (mut reader, mut total) = (HybridReplyReader::default(), 0);
    for piece in line.chunks(size) {
        match reader.read(piece) {
            Ok((count, None)) => total += count,
            Ok((count, reply)) => {
                assert_eq!(whole, Ok((total + count, reply)));
                break;
            }
            Err(_) => {
                assert!(whole.is_err(), "{whole:?}");
                break;
            }
        }
    }
}

/// Requests and replies as VMMs and systemd write them.
pub(crate) fn seeds() -> Vec<Seed> {
    let lines = [
        ("port", "CONNECT 22\n"),
        ("lower", "connect 4294967295\r\n"),
        ("guid", "CONNECT 00000ac9-facb-11e6-bd58-64006a7986d3\n"),
        ("name", "CONNECT HV Socket Demo\nand data"),
        ("too-large", "CONNECT 4294967296\n"),
        ("no-request", "GET / HTTP/1.1\r\n"),
        ("ok", "OK 1073741824\n"),
        ("ok-long", "OK 12345 and more\n"),
        ("err", "ERR no listener\n"),
        ("ok-bare", "OK\n"),
    ];
    super::named(lines.map(|(name, line)| (name, [&[255], line.as_bytes()].concat())))
}
