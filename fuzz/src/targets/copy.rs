//! A hostile sender of files. Nothing outside the destination changes.

use std::fs;
use std::io::{self, Read, Write};

use hvsock_services::copy::{Destination, Link, MessageStream, Receiver, Trust, Unobserved};
use hvsock_services::wire::copy::{self as wire, sender_message::What};
use prost::Message;

use crate::target::Seed;

/// A connection on which all has arrived.
struct Arrived<'a>(&'a [u8]);

impl Read for Arrived<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Arrived<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Link for Arrived<'_> {
    fn has_input(&mut self) -> io::Result<bool> {
        Ok(true)
    }
}

/// Receives a copy. The first byte has the options.
pub(crate) fn run(bytes: &[u8]) {
    let Some((options, bytes)) = bytes.split_first() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let (to, secret) = (folder.path().join("to"), folder.path().join("secret"));
    fs::create_dir(&to).expect("a folder");
    fs::write(&secret, "secret").expect("a file");
    let mut messages = MessageStream::new(Arrived(bytes));
    let Ok(destination) = Destination::open(&to, options & 1 != 0) else {
        return;
    };
    let mut observer = Unobserved;
    let receiver = Receiver::new(&mut messages, &mut observer, destination);
    let trust = match options & 4 {
        0 => Trust::NoSetId,
        _ => Trust::Full,
    };
    let archive = (options & 2 != 0).then_some(trust);
    let _ = receiver.archive(archive).run();
    let beside = fs::read_dir(folder.path()).expect("the folder").count();
    assert_eq!(beside, 2);
    assert_eq!(fs::read(&secret).expect("the file"), b"secret");
}

fn framed(what: What) -> Vec<u8> {
    let message = wire::SenderMessage { what: Some(what) }.encode_to_vec();
    [&(message.len() as u32).to_le_bytes()[..], &message].concat()
}

/// A tree with a file and a link, and its messages alone.
pub(crate) fn seeds() -> Vec<Seed> {
    let meta = || {
        Some(wire::Meta {
            mode: 0o755,
            ..wire::Meta::default()
        })
    };
    let enter = framed(What::Enter(wire::Enter {
        name: b"folder".as_slice().into(),
        meta: meta(),
        identity: 0,
    }));
    let leave = framed(What::Leave(wire::Leave {}));
    let file = framed(What::File(wire::File {
        name: b"file".as_slice().into(),
        meta: meta(),
        size: 4,
        ask: false,
        identity: 0,
    }));
    let chunk = framed(What::Chunk(wire::Chunk {
        offset: 0,
        length: 4,
    }));
    let end_of_file = framed(What::FileEnd(wire::FileEnd {
        size: 4,
        checksum: vec![1; 16].into(),
        broken: false,
    }));
    let link = framed(What::Symlink(wire::Symlink {
        name: b"link".as_slice().into(),
        target: b"../secret".as_slice().into(),
        ..wire::Symlink::default()
    }));
    let end = framed(What::End(wire::End::default()));
    let seed = |options: u8, parts: &[&[u8]]| [&[options], parts.concat().as_slice()].concat();
    super::named([
        (
            "tree",
            seed(
                2,
                &[
                    &enter,
                    &file,
                    &chunk,
                    b"data",
                    &end_of_file,
                    &link,
                    &leave,
                    &end,
                ],
            ),
        ),
        (
            "file",
            seed(0, &[&file, &chunk, b"data", &end_of_file, &end]),
        ),
        ("link-then-file", seed(6, &[&link, &file, &end])),
        ("depth", seed(3, &[&enter, &enter, &enter, &leave])),
    ])
}
