//! Listeners, their backlog, and many connections at once.

use std::io;
use std::time::{Duration, Instant};

use super::util::{expect_end, fresh, is_timeout, limited, receive, send};
use super::{Case, LONGEST_WAIT, Listener, Stream, Transport};

const BACKLOG: u32 = 4;

pub(super) fn cases<T: Transport>() -> Vec<Case<T>> {
    vec![
        Case::new("many_connections_at_once_keep_apart", many),
        Case::new(
            "a_thousand_connections_one_after_another",
            one_after_another,
        ),
        Case::needs("an_accept_ends_at_its_time_limit", listens, accept_deadline),
        Case::needs(
            "what_is_sent_before_the_accept_arrives",
            listens,
            data_before_accept,
        ),
        Case::needs(
            "a_full_backlog_refuses_and_takes_again",
            listens,
            full_backlog,
        ),
        Case::needs(
            "a_listener_that_goes_away_ends_who_waits",
            listens,
            listener_goes_away,
        ),
    ]
}

fn listens<T: Transport>(transport: &T) -> bool {
    transport.listen().is_some()
}

fn listener<T: Transport>(transport: &T, backlog: u32) -> Box<dyn Listener<T::Stream>> {
    let listen = transport.listen().expect("checked before");
    listen(transport, backlog).expect("a new listener")
}

fn many<T: Transport>(transport: &T) {
    let pairs: Vec<_> = (0..transport.many()).map(|_| fresh(transport)).collect();
    for (number, (connector, _)) in pairs.iter().enumerate() {
        send(connector, &(number as u32).to_le_bytes());
    }
    for (number, (_, acceptor)) in pairs.iter().enumerate().rev() {
        assert_eq!(receive(acceptor, 4), (number as u32).to_le_bytes());
        send(acceptor, &(!(number as u32)).to_le_bytes());
    }
    let mut acceptors = Vec::new();
    for (number, (connector, acceptor)) in pairs.into_iter().enumerate() {
        assert_eq!(receive(&connector, 4), (!(number as u32)).to_le_bytes());
        acceptors.push(acceptor);
    }
    for acceptor in &acceptors {
        expect_end(acceptor);
    }
}

fn one_after_another<T: Transport>(transport: &T) {
    for number in 0..1000u32 {
        let (connector, acceptor) = fresh(transport);
        send(&connector, &number.to_le_bytes());
        drop(connector);
        assert_eq!(receive(&acceptor, 4), number.to_le_bytes());
        expect_end(&acceptor);
    }
}

fn accept_deadline<T: Transport>(transport: &T) {
    let listener = listener(transport, BACKLOG);
    let start = Instant::now();
    let limit = Duration::from_millis(200);
    match listener.accept(limit) {
        Err(error) => assert!(is_timeout(error.kind()), "{error}"),
        Ok(_) => panic!("a connection that nobody made"),
    }
    assert!(
        start.elapsed() < LONGEST_WAIT,
        "it took {:?}",
        start.elapsed()
    );
    let connector = limited(listener.connect().expect("a connection"));
    let acceptor = limited(listener.accept(LONGEST_WAIT).expect("accepted"));
    send(&connector, b"x");
    assert_eq!(receive(&acceptor, 1), b"x");
}

fn data_before_accept<T: Transport>(transport: &T) {
    let listener = listener(transport, BACKLOG);
    let first = limited(listener.connect().expect("a connection"));
    send(&first, b"first");
    first.shutdown_write().expect("half-close");
    let second = limited(listener.connect().expect("a connection"));
    send(&second, b"other");
    drop(second);
    let accepted = limited(listener.accept(LONGEST_WAIT).expect("accepted"));
    assert_eq!(
        receive(&accepted, 5),
        b"first",
        "connections are accepted in order"
    );
    expect_end(&accepted);
    send(&accepted, b"back");
    assert_eq!(receive(&first, 4), b"back");
    let accepted = limited(listener.accept(LONGEST_WAIT).expect("accepted"));
    assert_eq!(receive(&accepted, 5), b"other");
    expect_end(&accepted);
}

fn full_backlog<T: Transport>(transport: &T) {
    let listener = listener(transport, BACKLOG);
    let mut waiting = Vec::new();
    let start = Instant::now();
    let refused = loop {
        assert!(
            waiting.len() < 10 * BACKLOG as usize,
            "a backlog of {BACKLOG} took them all"
        );
        match listener.connect() {
            Ok(connector) => waiting.push(limited(connector)),
            Err(error) => break error,
        }
    };
    assert_eq!(
        refused.kind(),
        io::ErrorKind::ConnectionRefused,
        "{refused}"
    );
    assert!(
        waiting.len() >= BACKLOG as usize,
        "refused with {} waiting",
        waiting.len()
    );
    assert!(
        start.elapsed() < LONGEST_WAIT,
        "it took {:?}",
        start.elapsed()
    );

    // One place is free again; the news of it may take a moment.
    let mut accepted = vec![limited(listener.accept(LONGEST_WAIT).expect("accepted"))];
    waiting.push(limited(connect_soon(&*listener)));
    while accepted.len() < waiting.len() {
        accepted.push(limited(listener.accept(LONGEST_WAIT).expect("accepted")));
    }
    for (connector, acceptor) in waiting.iter().zip(&accepted) {
        send(connector, b"in order");
        assert_eq!(receive(acceptor, 8), b"in order");
    }
}

fn connect_soon<S>(listener: &dyn Listener<S>) -> S {
    let deadline = Instant::now() + LONGEST_WAIT;
    loop {
        match listener.connect() {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "still refused: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The peer of who waited in the backlog is gone: it sees an end or a reset, but no hang.
fn listener_goes_away<T: Transport>(transport: &T) {
    let listener = listener(transport, BACKLOG);
    let waiting = limited(listener.connect().expect("a connection"));
    drop(listener);
    match waiting.read(&mut [0; 8]) {
        Ok(count) => assert_eq!(count, 0, "bytes that nobody sent"),
        Err(error) => assert!(super::util::is_gone(error.kind()), "{error}"),
    }
}
