//! Tests of a connection whose process has the guest's socket, as the broker sees it. Each test holds the
//! process's end, and the guest's: a Unix socket stands in for the kernel's.

use hvsock_endpoint::{ClientMessage, MAX_MESSAGE, SocketOption};
use hvsock_sys::{message, seqpacket, set_nonblocking};

use super::*;

struct World {
    connection: HandOver,
    guest: Option<OwnedFd>,
    data: Option<OwnedFd>,
    control: Option<OwnedFd>,
}

impl World {
    fn new(raw_fd: bool) -> Self {
        let (guest, data) = stream::pair().unwrap();
        let (control, theirs) = seqpacket::pair().unwrap();
        for fd in [&guest, &data, &control, &theirs] {
            set_nonblocking(fd, true).unwrap();
        }
        Self {
            connection: HandOver::new(control, data.try_clone().unwrap(), raw_fd, 1),
            guest: Some(guest),
            data: Some(data),
            control: Some(theirs),
        }
    }

    fn send(&self, message: &ClientMessage) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        message::send(self.control.as_ref().unwrap(), &bytes, &[]).unwrap();
    }

    fn ask_for_end(&self) {
        let option = SocketOption::ConfirmEnd;
        self.send(&ClientMessage::SetOption { option, value: 1 });
    }

    fn exit(&mut self) {
        (self.data, self.control) = (None, None);
    }

    fn guest(&self) -> &OwnedFd {
        self.guest.as_ref().unwrap()
    }

    fn data(&self) -> &OwnedFd {
        self.data.as_ref().unwrap()
    }

    fn receive(&self) -> Option<BrokerMessage> {
        let mut bytes = [0; MAX_MESSAGE];
        let received = message::recv(self.control.as_ref().unwrap(), &mut bytes).ok()?;
        BrokerMessage::decode(&bytes[..received.len]).ok()
    }

    fn run(&mut self) -> Turn {
        self.connection.control.readable = true;
        loop {
            match self.connection.turn() {
                Turn::Again => {}
                turn => return turn,
            }
        }
    }

    fn run_to_reset(&mut self) -> String {
        let Turn::Closed(Some(refusal)) = self.run() else {
            panic!("not reset");
        };
        refusal.to_string()
    }
}

fn is_at_end(socket: &OwnedFd) -> bool {
    matches!(stream::recv(socket, &mut [0]), Ok(0))
}

#[test]
fn the_end_of_the_guests_data_is_clean_and_the_other_half_goes_on() {
    let mut world = World::new(false);
    stream::send(world.guest(), b"all").unwrap();
    stream::shutdown(world.guest(), Shutdown::Write).unwrap();
    assert_eq!(stream::recv(world.data(), &mut [0; 8]).unwrap(), 3);
    assert!(is_at_end(world.data()));
    world.ask_for_end();
    assert!(matches!(world.run(), Turn::Waiting));
    assert_eq!(world.receive(), Some(BrokerMessage::Shutdown));
    stream::send(world.data(), b"answer").unwrap();
    assert_eq!(stream::recv(world.guest(), &mut [0; 8]).unwrap(), 6);
    world.send(&ClientMessage::Shutdown);
    world.exit();
    assert!(matches!(world.run(), Turn::Closed(None)));
    assert!(is_at_end(world.guest()));
}

#[test]
fn a_process_that_asks_before_the_end_gets_no_answer() {
    let mut world = World::new(false);
    world.ask_for_end();
    assert!(matches!(world.run(), Turn::Waiting));
    assert_eq!(world.receive(), None);
}

#[test]
fn an_error_of_the_kernel_is_a_reset_and_no_end() {
    let mut world = World::new(false);
    stream::send(world.data(), b"unread").unwrap();
    // A Unix socket whose peer closes with unread bytes has the error that the end of a VM causes.
    world.guest = None;
    let text = world.run_to_reset();
    assert!(text.contains("virtual machine"), "{text}");
    assert_eq!(world.connection.guest_side(), 0);
}

#[test]
fn a_killed_process_ends_the_connection_although_the_broker_has_a_duplicate() {
    let mut world = World::new(false);
    stream::send(world.data(), b"last words").unwrap();
    world.exit();
    assert!(world.run_to_reset().contains("ended without closing"));
    let mut bytes = [0; 16];
    assert_eq!(stream::recv(world.guest(), &mut bytes).unwrap(), 10);
    assert!(is_at_end(world.guest()));
}

#[test]
fn closing_with_unread_data_is_told_to_the_operator() {
    let mut world = World::new(false);
    stream::send(world.guest(), b"nobody reads this").unwrap();
    world.send(&ClientMessage::Shutdown);
    world.exit();
    assert!(world.run_to_reset().contains("without reading all data"));
}

#[test]
fn a_program_with_the_raw_fd_goes_on_after_its_control_is_closed() {
    let mut world = World::new(true);
    world.control = None;
    assert!(matches!(world.run(), Turn::Closed(None)));
    assert_eq!(stream::send(world.data(), b"later").unwrap(), 5);
    assert_eq!(stream::recv(world.guest(), &mut [0; 8]).unwrap(), 5);
}

#[test]
fn the_broker_closes_the_connection_under_both_ends() {
    let world = World::new(true);
    world.connection.close();
    assert!(is_at_end(world.guest()) && is_at_end(world.data()));
    assert!(stream::send(world.data(), b"x").is_err());
    assert!(stream::send(world.guest(), b"x").is_err());
}

#[test]
fn a_protocol_violation_on_the_control_connection_resets_it() {
    let mut world = World::new(false);
    message::send(world.control.as_ref().unwrap(), b"nonsense", &[]).unwrap();
    assert!(!world.run_to_reset().is_empty());
}
