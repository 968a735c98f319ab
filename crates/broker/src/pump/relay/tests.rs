//! Tests of single turns: which flows are spliced, and what the shared pipe holds after a turn.

use std::os::fd::OwnedFd;

use hvsock_sys::{seqpacket, set_nonblocking};

use super::*;

const CHUNK: usize = 32 * 1024;

/// A relayed connection with the data and the control descriptors of its two processes.
struct World {
    relay: Relay,
    data: [OwnedFd; 2],
    _controls: [OwnedFd; 2],
    counters: ByteCounters,
}

impl World {
    fn new() -> Self {
        let (mut data, mut controls, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..2 {
            let (control, their_control) = seqpacket::pair().unwrap();
            let (own, theirs) = stream::pair().unwrap();
            stream::set_send_buffer(&theirs, SEND_BUFFER).unwrap();
            for fd in [&control, &own, &theirs] {
                set_nonblocking(fd, true).unwrap();
            }
            ends.push(RelayEnd::new(control, own, false));
            data.push(theirs);
            controls.push(their_control);
        }
        let [server, client] = [ends.pop().unwrap(), ends.pop().unwrap()];
        Self {
            relay: Relay::new(client, server),
            data: data.try_into().unwrap(),
            _controls: controls.try_into().unwrap(),
            counters: ByteCounters::default(),
        }
    }

    /// The client writes `count` bytes of the value `byte`.
    fn write(&self, byte: u8, count: usize) {
        let bytes = vec![byte; count];
        assert_eq!(stream::send(&self.data[0], &bytes).unwrap(), count);
    }

    /// One turn after events for both ends.
    fn turn(&mut self, buffers: &mut Buffers) -> Turn {
        for end in &mut self.relay.ends {
            (end.readable, end.writable) = (true, true);
        }
        self.relay.turn(buffers, &self.counters)
    }

    /// Makes the flow from the client a spliced one.
    fn become_bulk(&mut self, buffers: &mut Buffers) {
        self.write(0, 2 * SPLICE_FROM);
        self.turn(buffers);
        assert_eq!(self.read().len(), 2 * SPLICE_FROM);
        self.relay.flows[0].is_bulk = true;
    }

    /// What the server can read now.
    fn read(&self) -> Vec<u8> {
        let (mut all, mut part) = (Vec::new(), vec![0; CHUNK]);
        while let Ok(count @ 1..) = stream::recv(&self.data[1], &mut part) {
            all.extend_from_slice(&part[..count]);
        }
        all
    }
}

fn is_empty(buffers: &mut Buffers) -> bool {
    buffers.pipe().is_none_or(|pipe| pipe.held() == 0)
}

#[test]
fn a_flow_is_spliced_while_it_moves_much_and_copied_while_it_moves_little() {
    let (mut world, mut buffers) = (World::new(), Buffers::new());
    world.write(1, 100);
    world.turn(&mut buffers);
    assert!(!world.relay.flows[0].is_bulk);
    world.write(2, 3 * SPLICE_FROM);
    world.turn(&mut buffers);
    assert!(world.relay.flows[0].is_bulk);
    world.write(3, 10);
    world.turn(&mut buffers);
    assert!(!world.relay.flows[0].is_bulk);
    let want = [vec![1; 100], vec![2; 3 * SPLICE_FROM], vec![3; 10]].concat();
    assert!(world.read() == want);
    assert_eq!(world.counters.sent(), want.len() as u64);
}

#[test]
fn a_spliced_flow_ends_cleanly_only_after_its_announcement() {
    for announces in [true, false] {
        let (mut world, mut buffers) = (World::new(), Buffers::new());
        world.become_bulk(&mut buffers);
        world.write(7, 50_000);
        if let Some(control) = world.relay.ends[0].control.as_mut() {
            control.announced = announces;
        }
        stream::shutdown(&world.data[0], Shutdown::Write).unwrap();
        let turn = world.turn(&mut buffers);
        assert_eq!(
            matches!(turn, Turn::Closed(Some(_))),
            !announces,
            "{turn:?}"
        );
        assert!(world.read() == vec![7; 50_000]);
    }
}

#[test]
fn what_a_full_sink_leaves_is_buffered_and_delivered_in_order() {
    let (mut world, mut buffers) = (World::new(), Buffers::new());
    world.become_bulk(&mut buffers);
    let mut written = 0;
    let mut got = Vec::new();
    for round in 0..40u8 {
        let bytes = vec![round; CHUNK];
        if let Ok(count) = stream::send(&world.data[0], &bytes) {
            written += count;
        }
        world.turn(&mut buffers);
        assert!(is_empty(&mut buffers), "between turns the pipe is empty");
    }
    let counted = world.counters.sent();
    while got.len() < written {
        let part = world.read();
        got.extend_from_slice(&part);
        world.turn(&mut buffers);
    }
    assert_eq!(got.len(), written);
    assert!(got.is_sorted(), "the rounds' bytes are out of order");
    // Bytes are counted when the sink has accepted them.
    assert!(counted <= (2 * SPLICE_FROM + written) as u64);
    assert_eq!(world.counters.sent(), (2 * SPLICE_FROM + written) as u64);
}

#[test]
fn no_byte_of_a_connection_whose_sink_closed_reaches_the_next_connection() {
    let (mut first, mut second) = (World::new(), World::new());
    let mut buffers = Buffers::new();
    first.become_bulk(&mut buffers);
    second.become_bulk(&mut buffers);
    first.write(0xee, 100_000);
    stream::shutdown(&first.data[1], Shutdown::Read).unwrap();
    assert!(matches!(first.turn(&mut buffers), Turn::Waiting));
    assert!(first.relay.flows[0].lost && first.relay.flows[0].sink_closed);
    assert!(is_empty(&mut buffers));
    second.write(0x22, 100_000);
    second.turn(&mut buffers);
    assert!(second.read() == vec![0x22; 100_000]);
}

#[test]
fn a_suspended_connection_splices_nothing() {
    let (mut world, mut buffers) = (World::new(), Buffers::new());
    world.become_bulk(&mut buffers);
    world.relay.suspend(true);
    world.write(5, 100_000);
    world.turn(&mut buffers);
    assert!(world.read().is_empty());
    world.relay.suspend(false);
    world.turn(&mut buffers);
    assert!(world.read() == vec![5; 100_000]);
}

#[test]
fn a_system_without_splice_gets_copies() {
    let (mut world, mut buffers) = (World::new(), Buffers::new());
    buffers.stop_splicing();
    world.become_bulk(&mut buffers);
    world.write(6, 200_000);
    world.turn(&mut buffers);
    assert!(world.read() == vec![6; 200_000]);
    assert!(buffers.pipe().is_none());
}

#[test]
fn a_raw_fd_whose_control_was_closed_early_receives_after_its_own_end() {
    let (mut buffers, counters) = (Buffers::new(), ByteCounters::default());
    let (control, their_control) = seqpacket::pair().unwrap();
    let (own, process) = stream::pair().unwrap();
    let (of_guest, guest) = stream::pair().unwrap();
    for fd in [&control, &own, &process, &of_guest, &guest] {
        set_nonblocking(fd, true).unwrap();
    }
    // The guest learns of the end of data by the close only.
    let ends = [
        RelayEnd::new(control, own, true),
        RelayEnd::of_guest(of_guest, false),
    ];
    let [process_end, guest_end] = ends;
    let mut relay = Relay::new(process_end, guest_end);
    drop(their_control);
    stream::send(&process, b"question").unwrap();
    stream::shutdown(&process, Shutdown::Write).unwrap();
    let mut turn = |relay: &mut Relay| {
        for end in &mut relay.ends {
            (end.readable, end.writable) = (true, true);
            if let Some(control) = &mut end.control {
                control.readable = true;
            }
        }
        relay.turn(&mut buffers, &counters)
    };
    let first = turn(&mut relay);
    assert!(!matches!(first, Turn::Closed(_)), "{first:?}");
    let mut bytes = [0; 8];
    assert_eq!(stream::recv(&guest, &mut bytes).unwrap(), 8);
    stream::send(&guest, b"answer").unwrap();
    turn(&mut relay);
    assert_eq!(stream::recv(&process, &mut bytes).unwrap(), 6);
    relay.ends[0].hung_up = true;
    assert!(matches!(turn(&mut relay), Turn::Closed(None)));
}
