//! What a well-behaved program may do.

use super::world::{BOTH, Emulated, Way, prints, succeeds};

#[test]
fn an_unmodified_program_connects_accepts_and_ends_its_data() {
    succeeds(&BOTH, "blocking");
}

#[test]
fn timeouts_of_an_unmodified_program_end_its_calls() {
    succeeds(&BOTH, "timeout");
}

#[test]
fn epoll_sees_a_socket_from_before_its_connect_or_listen() {
    succeeds(&BOTH, "nonblocking");
}

#[test]
fn a_refused_connect_in_progress_shows_and_leaves_its_error() {
    succeeds(&BOTH, "nonblocking_refused");
}

#[test]
fn a_socket_whose_connect_was_refused_connects_again() {
    succeeds(&BOTH, "connects_again");
}

// A supervisor cannot register the new open file in the program's epoll instances.
#[test]
fn epoll_sees_a_second_connect_with_the_preloaded_library() {
    succeeds(&[Way::Preload], "connects_again_early");
}

#[test]
fn asyncio_serves_and_connects() {
    succeeds(&BOTH, "asyncio_both");
}

#[test]
fn a_listener_is_not_readable_after_its_only_connection_was_accepted() {
    succeeds(&BOTH, "accepted_once");
}

#[test]
fn children_accept_and_use_the_sockets_of_their_parent() {
    succeeds(&BOTH, "fork");
}

#[test]
fn duplicates_of_a_descriptor_are_the_same_socket() {
    succeeds(&BOTH, "duplicates");
}

#[test]
fn sockets_are_known_after_exec() {
    succeeds(&BOTH, "executed");
}

#[test]
fn a_listener_passed_to_another_process_accepts_there() {
    succeeds(&BOTH, "passed");
}

#[test]
fn a_hundred_dials_at_once_and_in_turn_leave_no_descriptors() {
    succeeds(&BOTH, "many");
}

#[test]
fn a_closed_listeners_port_is_free_at_once() {
    succeeds(&BOTH, "rebind");
}

#[test]
fn failures_have_the_numbers_that_the_kernel_gives() {
    let expected = "\
unbound (4294967295, 4294967295) ENOTCONN
listen unbound EINVAL
accept EINVAL
no cid ENODEV
nobody ECONNRESET
bind elsewhere EADDRNOTAVAIL
bind again EINVAL
bind in use EADDRINUSE
connect a listener EINVAL
options 1 1
domain 40 0 0
connect again EISCONN
listen connected EINVAL EINVAL
buffer 0 262144
buffer 1 128
buffer 2 262144
unknown option ENOPROTOOPT ENOPROTOOPT
dgram ESOCKTNOSUPPORT EPROTONOSUPPORT
cid True
";
    prints(&BOTH, "errors", expected);
}

#[test]
fn a_signal_interrupts_or_restarts_accept_as_its_handler_says() {
    prints(&BOTH, "signals", "interrupted\nrestarted\n");
}

#[test]
fn the_vsock_device_tells_the_own_context_id() {
    prints(&BOTH, "device", "True\n");
}

#[test]
fn sockets_of_other_families_behave_as_without_hvsock() {
    let Some(emulated) = Emulated::new() else {
        return;
    };
    let mut native = std::process::Command::new(&emulated.python);
    native.arg(super::world::file("sockets.py")).arg("foreign");
    let native = crate::util::Completed::of(&mut native).ok();
    assert!(native.lines().count() > 1000);
    let native = native.strip_suffix("done\n").unwrap();
    for way in BOTH {
        let ours = emulated.output(way, "foreign");
        let differs = native.lines().zip(ours.lines()).find(|(a, b)| a != b);
        assert_eq!(differs, None, "{way:?}");
        assert_eq!(native.len(), ours.len());
    }
}
