//! Tests of a direct connection as the broker sees it. Each test holds the processes' ends.

use hvsock_endpoint::{ClientMessage, MAX_MESSAGE, SocketOption};
use hvsock_sys::{message, seqpacket, set_nonblocking};

use super::*;

struct Process {
    control: OwnedFd,
    data: OwnedFd,
}

impl Process {
    fn send(&self, message: &ClientMessage) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        message::send(&self.control, &bytes, &[]).unwrap();
    }

    /// Announces the end and half-closes, as the library does.
    fn finish(&self) {
        self.send(&ClientMessage::Shutdown);
        stream::shutdown(&self.data, Shutdown::Write).unwrap();
    }

    fn ask_for_end(&self) {
        let option = SocketOption::ConfirmEnd;
        self.send(&ClientMessage::SetOption { option, value: 1 });
    }

    fn write(&self, bytes: &[u8]) {
        assert_eq!(stream::send(&self.data, bytes).unwrap(), bytes.len());
    }

    fn read(&self) -> Vec<u8> {
        let (mut all, mut part) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = stream::recv(&self.data, &mut part) {
            all.extend_from_slice(&part[..count]);
        }
        all
    }

    /// Whether the data has ended.
    fn is_at_end(&self) -> bool {
        matches!(stream::recv(&self.data, &mut [0]), Ok(0))
    }

    fn receive(&self) -> Option<BrokerMessage> {
        let mut bytes = [0; MAX_MESSAGE];
        let received = message::recv(&self.control, &mut bytes).ok()?;
        BrokerMessage::decode(&bytes[..received.len]).ok()
    }
}

struct World {
    direct: Direct,
    processes: [Option<Process>; 2],
}

impl World {
    fn new(raw_fd: [bool; 2]) -> Self {
        let (one, other) = stream::pair().unwrap();
        let mut ends = Vec::new();
        let processes = [(one, raw_fd[0]), (other, raw_fd[1])].map(|(data, raw_fd)| {
            let (control, theirs) = seqpacket::pair().unwrap();
            for fd in [&control, &theirs, &data] {
                set_nonblocking(fd, true).unwrap();
            }
            ends.push(DirectEnd::new(control, data.try_clone().unwrap(), raw_fd));
            Some(Process {
                control: theirs,
                data,
            })
        });
        let [server, client] = [ends.pop().unwrap(), ends.pop().unwrap()];
        Self {
            direct: Direct::new(client, server),
            processes,
        }
    }

    fn process(&self, side: usize) -> &Process {
        self.processes[side].as_ref().unwrap()
    }

    fn exit(&mut self, side: usize) {
        self.processes[side] = None;
    }

    /// Runs turns until there is nothing to do.
    fn run(&mut self) -> Turn {
        for end in &mut self.direct.ends {
            end.control.readable = !end.control.closed;
        }
        loop {
            match self.direct.turn() {
                Turn::Again => {}
                turn => return turn,
            }
        }
    }

    /// Runs turns, and closes the connection as a set does if they end with a reset.
    fn run_to_reset(&mut self) -> String {
        let Turn::Closed(Some(refusal)) = self.run() else {
            panic!("not reset");
        };
        self.direct.close();
        refusal.to_string()
    }
}

#[test]
fn an_announced_end_is_passed_on_and_the_other_half_goes_on() {
    let mut world = World::new([false; 2]);
    world.process(0).write(b"all");
    world.process(0).finish();
    assert!(matches!(world.run(), Turn::Waiting));
    let server = world.process(1);
    assert_eq!(server.read(), b"all");
    assert!(server.is_at_end());
    assert_eq!(server.receive(), Some(BrokerMessage::Shutdown));
    server.write(b"still here");
    server.finish();
    assert!(matches!(world.run(), Turn::Waiting));
    assert_eq!(world.process(0).read(), b"still here");
    assert_eq!(world.process(0).receive(), Some(BrokerMessage::Shutdown));
    world.exit(0);
    world.exit(1);
    assert!(matches!(world.run(), Turn::Closed(None)));
}

#[test]
fn a_killed_process_is_a_reset_after_all_its_bytes() {
    let mut world = World::new([false; 2]);
    world.process(0).write(b"last words");
    world.exit(0);
    // Its end stays open until the reason has been sent.
    assert_eq!(world.process(1).read(), b"last words");
    assert!(!world.process(1).is_at_end());
    assert!(world.run_to_reset().contains("ended without closing"));
    assert!(world.process(1).is_at_end());
}

#[test]
fn a_process_that_shuts_down_without_an_announcement_is_reset_when_its_peer_asks() {
    let mut world = World::new([false; 2]);
    stream::shutdown(&world.process(0).data, Shutdown::Both).unwrap();
    assert!(matches!(world.run(), Turn::Waiting));
    assert!(world.process(1).is_at_end());
    world.process(1).ask_for_end();
    assert!(world.run_to_reset().contains("ended without closing"));
}

#[test]
fn an_announcement_that_arrives_with_the_question_is_seen() {
    let mut world = World::new([false; 2]);
    world.process(0).finish();
    assert!(world.process(1).is_at_end());
    world.process(1).ask_for_end();
    // The event loop has seen the queue of the process that asks before the other's had a message.
    world.direct.control_mut(1).readable = true;
    while let Turn::Again = world.direct.turn() {}
    assert_eq!(world.process(1).receive(), Some(BrokerMessage::Shutdown));
    assert!(matches!(world.run(), Turn::Waiting));
    assert_eq!(world.process(1).receive(), None);
}

#[test]
fn a_process_that_asks_before_the_end_gets_no_answer() {
    let mut world = World::new([true, false]);
    world.process(1).ask_for_end();
    assert!(matches!(world.run(), Turn::Waiting));
    assert_eq!(world.process(1).receive(), None);
}

#[test]
fn the_half_close_of_a_raw_fd_is_a_clean_end_for_a_peer_that_asks() {
    let mut world = World::new([true, false]);
    world.process(0).write(b"from cat");
    stream::shutdown(&world.process(0).data, Shutdown::Write).unwrap();
    assert_eq!(world.process(1).read(), b"from cat");
    world.process(1).ask_for_end();
    assert!(matches!(world.run(), Turn::Waiting));
    assert_eq!(world.process(1).receive(), Some(BrokerMessage::Shutdown));
    world.process(1).write(b"the other way works");
    assert_eq!(world.process(0).read(), b"the other way works");
}

#[test]
fn a_raw_fd_ends_with_its_program_although_its_control_was_closed_early() {
    let mut world = World::new([true, false]);
    let client = world.processes[0].take().unwrap();
    drop(client.control);
    assert!(matches!(world.run(), Turn::Waiting));
    stream::send(&client.data, b"later").unwrap();
    assert_eq!(world.process(1).read(), b"later");
    assert!(!world.process(1).is_at_end());
    // No duplicate keeps its end open.
    drop(client.data);
    assert!(world.process(1).is_at_end());
    world.process(1).ask_for_end();
    world.run();
    assert_eq!(world.process(1).receive(), Some(BrokerMessage::Shutdown));
}

#[test]
fn an_announcement_behind_many_messages_still_counts() {
    let mut world = World::new([false; 2]);
    let option = SocketOption::ConnectedSuspend;
    for value in 0..100 {
        world
            .process(0)
            .send(&ClientMessage::SetOption { option, value });
    }
    world.process(0).finish();
    world.process(1).ask_for_end();
    world.exit(0);
    assert!(matches!(world.run(), Turn::Waiting));
    assert_eq!(world.process(1).receive(), Some(BrokerMessage::Shutdown));
}

#[test]
fn closing_with_unread_data_resets_the_writer() {
    let mut world = World::new([false; 2]);
    world.process(1).write(&[1; 4096]);
    world.process(0).finish();
    world.exit(0);
    assert!(world.run_to_reset().contains("without reading all data"));
}

#[test]
fn a_close_with_bytes_unread_is_no_clean_end_first() {
    for looks_between in [false, true] {
        let mut world = World::new([false; 2]);
        world.process(1).write(&[1; 4096]);
        // The library announces the end, and closes the data and then control.
        world.process(0).send(&ClientMessage::Shutdown);
        if looks_between {
            assert!(matches!(world.run(), Turn::Waiting));
        }
        world.exit(0);
        assert!(!world.process(1).is_at_end());
        assert!(world.run_to_reset().contains("without reading all data"));
        assert_eq!(world.process(1).receive(), None);
    }
}

#[test]
fn the_broker_closes_a_connection_while_it_has_either_end() {
    for early in [None, Some(0), Some(1)] {
        let mut world = World::new([true; 2]);
        let mut ends = [0, 1].map(|side| world.processes[side].take());
        let mut controls = Vec::new();
        let data = ends.each_mut().map(|process| {
            let Process { control, data } = process.take().unwrap();
            controls.push(Some(control));
            data
        });
        if let Some(side) = early {
            controls[side] = None;
        }
        world.run();
        world.direct.close();
        for fd in data {
            assert!(matches!(stream::recv(&fd, &mut [0]), Ok(0)), "{early:?}");
            assert!(stream::send(&fd, b"x").is_err(), "{early:?}");
        }
    }
}
