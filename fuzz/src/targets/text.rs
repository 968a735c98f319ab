//! Lines of the text protocol: requests as the broker reads them, in any pieces, and replies as a client does.

use hvsock_endpoint::{TextReply, TextRequest, TextRequestReader};

use super::vectors;
use crate::target::Seed;

/// Reads the bytes as a request and as a reply. The first byte chooses the pieces.
pub(crate) fn run(bytes: &[u8]) {
    let Some((piece, line)) = bytes.split_first() else {
        return;
    };
    // A line in one piece is the line that a reader finds.
    let whole = TextRequestReader::default().read(line);
    if let Ok((count, Some(request))) = &whole {
        assert_eq!(TextRequest::parse(&line[..*count]).as_ref(), Ok(request));
    }
    let pieces = line.chunks(usize::from(*piece).max(1));
    let (mut reader, mut total) = (TextRequestReader::default(), 0);
    for piece in pieces {
        let again = {
            let mut again = TextRequestReader::default();
            let _ = again.read(reader.received());
            again
        };
        assert_eq!(again, reader, "what is kept is enough to go on");
        match reader.read(piece) {
            Ok((count, None)) => total += count,
            Ok((count, request)) => {
                assert_eq!(whole, Ok((total + count, request)));
                break;
            }
            // The same fault, although it may be seen before the line is whole.
            Err(_) => {
                assert!(whole.is_err(), "{whole:?}");
                break;
            }
        }
    }
    if let Ok(reply) = TextReply::parse(line) {
        let line = reply.to_line();
        let again = TextReply::parse(line.as_bytes()).map(|again| again.to_line());
        assert_eq!(again.as_ref(), Ok(&line), "{reply:?}");
    }
}

/// Valid and invalid lines.
pub(crate) fn seeds() -> Vec<Seed> {
    vectors::texts(vectors::TEXT, "line")
        .into_iter()
        .map(|(name, line)| (name, [&[255], line.as_slice()].concat()))
        .collect()
}
