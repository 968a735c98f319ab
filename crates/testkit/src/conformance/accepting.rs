//! Listeners, their backlog, and concurrent connections.

use std::io;
use std::time::{Duration, Instant};

use super::case::Case;
use super::stream::{LONGEST_WAIT, Stream};
use super::transport::{Listener, Transport};
use super::util::{expect_end, fresh, is_timeout, receive, send, with_timeouts};

const BACKLOG: u32 = 4;

pub(super) fn cases<T: Transport>() -> Vec<Case<T>> {
    vec![
        Case::new("concurrent_connections_do_not_mix", many),
        Case::new("a_thousand_sequential_connections", sequential),
        Case::needs("an_accept_times_out", listens, accept_deadline),
        Case::needs(
            "data_sent_before_the_accept_arrives",
            listens,
            data_before_accept,
        ),
        Case::needs(
            "a_full_backlog_refuses_until_an_accept",
            listens,
            full_backlog,
        ),
        Case::needs(
            "a_dropped_listener_ends_pending_connections",
            listens,
            dropped_listener,
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
    let pairs: Vec<_> = (0..transport.concurrent_connections())
        .map(|_| fresh(transport))
        .collect();
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

fn sequential<T: Transport>(transport: &T) {
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
    let timeout = Duration::from_millis(200);
    match listener.accept(timeout) {
        Err(error) => assert!(is_timeout(error.kind()), "{error}"),
        Ok(_) => panic!("accepted a connection that no client made"),
    }
    assert!(
        start.elapsed() < LONGEST_WAIT,
        "it took {:?}",
        start.elapsed()
    );
    let connector = with_timeouts(listener.connect().expect("a connection"));
    let acceptor = with_timeouts(listener.accept(LONGEST_WAIT).expect("accepted"));
    send(&connector, b"x");
    assert_eq!(receive(&acceptor, 1), b"x");
}

fn data_before_accept<T: Transport>(transport: &T) {
    let listener = listener(transport, BACKLOG);
    let first = with_timeouts(listener.connect().expect("a connection"));
    send(&first, b"first");
    first.shutdown_write().expect("half-close");
    let second = with_timeouts(listener.connect().expect("a connection"));
    send(&second, b"other");
    drop(second);
    let accepted = with_timeouts(listener.accept(LONGEST_WAIT).expect("accepted"));
    assert_eq!(
        receive(&accepted, 5),
        b"first",
        "connections are accepted in order"
    );
    expect_end(&accepted);
    send(&accepted, b"back");
    assert_eq!(receive(&first, 4), b"back");
    let accepted = with_timeouts(listener.accept(LONGEST_WAIT).expect("accepted"));
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
            "a backlog of {BACKLOG} refused none"
        );
        match listener.connect() {
            Ok(connector) => waiting.push(with_timeouts(connector)),
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

    // The accept frees a slot. The connecting side may learn of it a moment later.
    let mut accepted = vec![with_timeouts(
        listener.accept(LONGEST_WAIT).expect("accepted"),
    )];
    waiting.push(with_timeouts(connect_with_retries(&*listener)));
    while accepted.len() < waiting.len() {
        accepted.push(with_timeouts(
            listener.accept(LONGEST_WAIT).expect("accepted"),
        ));
    }
    for (connector, acceptor) in waiting.iter().zip(&accepted) {
        send(connector, b"in order");
        assert_eq!(receive(acceptor, 8), b"in order");
    }
}

fn connect_with_retries<S>(listener: &dyn Listener<S>) -> S {
    let deadline = Instant::now() + LONGEST_WAIT;
    loop {
        match listener.connect() {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "still refused: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A connection pending in the backlog ends with its listener, by end of file or a reset.
fn dropped_listener<T: Transport>(transport: &T) {
    let listener = listener(transport, BACKLOG);
    let waiting = with_timeouts(listener.connect().expect("a connection"));
    drop(listener);
    match waiting.read(&mut [0; 8]) {
        Ok(count) => assert_eq!(count, 0, "bytes that no peer sent"),
        Err(error) => assert!(super::util::is_gone(error.kind()), "{error}"),
    }
}
