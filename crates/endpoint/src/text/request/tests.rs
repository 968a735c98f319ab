use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const GUID: &str = "5ca1ab1e-0000-4000-8000-000000000000";

fn parse(line: &str) -> Result<TextRequest, InvalidTextRequest> {
    TextRequest::parse(line.as_bytes())
}

fn named(name: &str) -> TextPartition {
    TextPartition::Named(IdOrName::Name(name.into()))
}

fn known(id: VmId) -> TextPartition {
    TextPartition::Named(IdOrName::Id(id))
}

fn name(name: &str) -> IdOrName<ServiceId> {
    IdOrName::Name(name.into())
}

fn port(port: u32) -> IdOrName<ServiceId> {
    IdOrName::Id(ServiceId::from_port(port))
}

fn connect_to(partition: TextPartition, service: IdOrName<ServiceId>) -> TextRequest {
    TextRequest::Connect(TextConnect {
        timeout_ms: 0,
        partition,
        service,
    })
}

#[test]
fn a_connect_has_a_partition_and_the_rest_of_the_line_as_its_service() {
    let guid = IdOrName::Id(GUID.parse().unwrap());
    let id: VmId = GUID.parse().unwrap();
    for (line, request) in [
        (
            "CONNECT parent HV Socket Demo\n",
            connect_to(known(VmId::PARENT), name("HV Socket Demo")),
        ),
        (
            "connect  Parent\tHV Socket Demo \r\n",
            connect_to(known(VmId::PARENT), name("HV Socket Demo")),
        ),
        (
            "CONNECT loopback 52",
            connect_to(known(VmId::LOOPBACK), port(52)),
        ),
        (
            "CONNECT silohost port:52",
            connect_to(known(VmId::SILOHOST), port(52)),
        ),
        (
            "CONNECT web/box port:x",
            connect_to(named("web/box"), name("port:x")),
        ),
        ("CONNECT host 1", connect_to(named("host"), port(1))),
        (
            "CONNECT cid:42 a=b c",
            connect_to(TextPartition::Cid(42), name("a=b c")),
        ),
        (
            &format!("CONNECT {GUID} {GUID}"),
            connect_to(known(id), guid),
        ),
        ("CONNECT 7 8", connect_to(named("7"), port(8))),
        ("CONNECT 52\n", TextRequest::ConnectPort(52)),
        ("  CONNECT\t 052 \n", TextRequest::ConnectPort(52)),
        ("CONNECT 4294967295", TextRequest::ConnectPort(u32::MAX)),
    ] {
        assert_eq!(parse(line), Ok(request), "{line:?}");
    }
    let TextRequest::Connect(connect) = parse("CONNECT timeout=2000 web Demo").unwrap() else {
        panic!("no connect");
    };
    assert_eq!(
        (connect.timeout_ms, connect.partition),
        (2000, named("web"))
    );
}

#[test]
fn a_listen_has_options_before_its_address() {
    let plain = TextListen {
        backlog: 0,
        callback: None,
        from: known(VmId::WILDCARD),
        service: name("HV Socket Demo"),
    };
    let with = TextListen {
        backlog: 16,
        callback: Some("/run/my app/in%.sock".into()),
        ..plain.clone()
    };
    for (line, listen) in [
        ("LISTEN any HV Socket Demo\n", &plain),
        ("LISTEN wildcard HV Socket Demo\n", &plain),
        (
            "listen backlog=16 at=/run/my%20app/in%25.sock any HV Socket Demo",
            &with,
        ),
        (
            "LISTEN at=/run/my%20app/in%25.sock backlog=16 any HV Socket Demo",
            &with,
        ),
    ] {
        assert_eq!(
            parse(line),
            Ok(TextRequest::Listen(listen.clone())),
            "{line:?}"
        );
    }
}

#[test]
fn the_other_requests_have_one_argument_or_an_address() {
    let token: VmId = GUID.parse().unwrap();
    for (line, request) in [
        (
            format!("ACCEPT {GUID}\n"),
            TextRequest::Accept(token.to_guid_bytes()),
        ),
        (
            "WHY web HV Socket Demo".into(),
            TextRequest::Why {
                partition: named("web"),
                service: name("HV Socket Demo"),
            },
        ),
        (
            "LOOKUP partition web".into(),
            TextRequest::LookupPartition(named("web")),
        ),
        (
            "LOOKUP partition cid:3".into(),
            TextRequest::LookupPartition(TextPartition::Cid(3)),
        ),
        (
            "LOOKUP service HV Socket Demo".into(),
            TextRequest::LookupService(name("HV Socket Demo")),
        ),
        (
            "CID loopback".into(),
            TextRequest::Cid(known(VmId::LOOPBACK)),
        ),
    ] {
        assert_eq!(parse(&line), Ok(request), "{line:?}");
    }
}

#[test]
fn a_line_that_is_no_request_has_a_reason() {
    for (line, reason) in [
        ("", "begins with CONNECT, LISTEN"),
        ("\n", "begins with"),
        ("CONNECTED parent x", "begins with"),
        ("GET / HTTP/1.1\r\n", "begins with"),
        ("OK\n", "begins with"),
        ("CONNECT\n", "expected `CONNECT"),
        ("CONNECT parent\n", "expected `CONNECT"),
        ("CONNECT timeout=5\n", "expected `CONNECT"),
        ("CONNECT timeout=5 52\n", "expected `CONNECT"),
        ("CONNECT timeout=-1 web x", "`timeout` has no such value"),
        ("CONNECT timeout=+1 web x", "`timeout` has no such value"),
        ("CONNECT timeout= web x", "`timeout` has no such value"),
        ("CONNECT backlog=1 web x", "no option `backlog`"),
        ("CONNECT new=1 web x", "no option `new`"),
        ("CONNECT 4294967296", "4294967295"),
        ("CONNECT web 4294967296", "4294967295"),
        ("CONNECT cid:4294967296 x", "a CID is a number"),
        ("CONNECT cid: x", "a CID is a number"),
        ("CONNECT cid:+3 x", "a CID is a number"),
        ("CONNECT a/b/c x", "not a partition"),
        ("CONNECT web a\u{1b}b", "not a service"),
        ("LISTEN any", "expected `LISTEN"),
        ("LISTEN at=run/x any s", "`at` has no such value"),
        ("LISTEN at=/x%2 any s", "`at` has no such value"),
        ("LISTEN at=/x%zz any s", "`at` has no such value"),
        ("LISTEN at=/x%00 any s", "`at` has no such value"),
        ("LISTEN at= any s", "`at` has no such value"),
        ("LISTEN timeout=1 any s", "no option `timeout`"),
        ("ACCEPT", "expected `ACCEPT"),
        ("ACCEPT 1", "the token is the one"),
        (&format!("ACCEPT {GUID} x"), "the token is the one"),
        ("WHY web", "expected `WHY"),
        ("LOOKUP web", "expected `LOOKUP"),
        ("LOOKUP vm web", "expected `LOOKUP"),
        ("LOOKUP partition web box", "expected `LOOKUP"),
        ("CID", "expected `CID"),
        ("CID a b", "expected `CID"),
    ] {
        let error = parse(line).unwrap_err().to_string();
        assert!(error.contains(reason), "{line:?}: {error}");
    }
    let not_utf8 = TextRequest::parse(b"CONNECT web \xff\n");
    assert_eq!(not_utf8, Err(InvalidTextRequest::NotUtf8));
    let long = format!("CONNECT web {:>1$}\n", 52, MAX_TEXT_LINE);
    assert_eq!(parse(&long), Err(InvalidTextRequest::TooLong));
}

#[test]
fn a_request_ends_at_its_newline_and_what_follows_is_data() {
    let mut reader = TextRequestReader::default();
    assert_eq!(reader.read(b""), Ok((0, None)));
    assert_eq!(reader.read(b"CONN"), Ok((4, None)));
    let rest = reader.read(b"ECT 52\nCONNECT 53\n");
    assert_eq!(rest, Ok((7, Some(TextRequest::ConnectPort(52)))));
}

#[test]
fn what_cannot_become_a_request_is_refused_at_its_first_wrong_byte() {
    let unknown = Err(InvalidTextRequest::UnknownWord);
    let mut reader = TextRequestReader::default();
    assert_eq!(reader.read(b"L"), Ok((1, None)));
    assert_eq!(reader.read(b"O"), Ok((1, None)));
    assert_eq!(reader.read(b"x"), unknown);
    assert_eq!(TextRequestReader::default().read(b"LISTENx"), unknown);
    let endless = TextRequestReader::default().read(&[b' '; 2 * MAX_TEXT_LINE]);
    assert_eq!(endless, Err(InvalidTextRequest::TooLong));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_parsed_without_a_panic(line in any::<Vec<u8>>(), word in 0..WORDS.len()) {
        let _ = TextRequest::parse(&line);
        let _ = TextRequest::parse(&[WORDS[word].as_bytes(), b" ", &line[..]].concat());
    }

    /// The pieces in which bytes arrive change neither the request nor where the data begins.
    #[test]
    fn a_request_in_pieces_is_the_same_request(
        bytes in prop_oneof![
            vec(any::<u8>(), 0..400),
            "[ ]{0,3}(connect|LISTEN|why) [0-9a-z =/:]{0,340}\r?\n[ -~\n]{0,20}".prop_map(String::into_bytes),
            "[CONECTLISAPWHYUKD 1-3\n]{0,20}".prop_map(String::into_bytes),
        ],
        cuts in vec(1..50_usize, 0..40),
    ) {
        let whole = TextRequestReader::default().read(&bytes);
        let (mut reader, mut at, mut cuts) = (TextRequestReader::default(), 0, cuts.into_iter());
        let in_pieces = loop {
            let end = (at + cuts.next().unwrap_or(usize::MAX).min(bytes.len())).min(bytes.len());
            match reader.read(&bytes[at..end]) {
                Ok((count, Some(request))) => break Ok((at + count, Some(request))),
                Ok((count, None)) if at + count == bytes.len() => break Ok((bytes.len(), None)),
                Ok((count, None)) => {
                    prop_assert_eq!(at + count, end);
                    at = end;
                    let mut again = TextRequestReader::default();
                    prop_assert_eq!(again.read(reader.received()), Ok((at, None)));
                    prop_assert_eq!(&again, &reader);
                }
                Err(error) => break Err(error),
            }
        };
        // A line that is wrong at its beginning may be wrong in another way as well.
        match (&whole, &in_pieces) {
            (Err(_), Err(_)) => {}
            _ => prop_assert_eq!(whole, in_pieces),
        }
    }
}
