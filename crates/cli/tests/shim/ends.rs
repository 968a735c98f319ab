//! Refusals, and connections that end other than by their end.

use crate::scene::{GUEST, Scene, Talker};
use crate::util::{PATIENCE, start};

#[test]
fn a_connect_to_nobody_says_so() {
    let Some(scene) = Scene::new() else { return };
    let error = scene.ask().failed();
    assert!(
        error.contains("cannot connect to") && error.contains("nobody listens"),
        "{error}"
    );
}

#[test]
fn a_second_listener_at_one_address_is_refused() {
    let Some(scene) = Scene::new() else { return };
    let _first = scene.listen(["--from", "loopback"]);
    let mut second = scene.command(["listen", &scene.service, "--from", "loopback"]);
    let error = scene.run(&mut second).failed();
    assert!(error.contains("cannot listen"), "{error}");
}

#[test]
fn what_windows_says_of_a_machine_is_said_in_words() {
    let Some(scene) = Scene::new() else { return };
    for (number, words) in [
        ("10051", "is off"),
        ("10050", "is paused"),
        ("10013", "denied"),
        ("10061", "nobody listens"),
    ] {
        let mut connect = scene.command(["connect", GUEST, &scene.service]);
        connect.env("HV_SHIM_VMS", GUEST);
        let done = scene.run(connect.env("HV_SHIM_ERROR", number));
        let error = done.failed();
        assert!(error.contains(words), "{number}: {error}");
    }
}

#[test]
fn who_does_not_answer_is_waited_for_as_long_as_told() {
    let Some(scene) = Scene::new() else { return };
    let _listener = scene.listen(["--from", "loopback"]);
    let arguments = ["connect", "loopback", &scene.service, "--timeout", "0.3"];
    let mut connect = scene.command(arguments);
    let error = scene.run(connect.env("HV_SHIM_DELAY", "20000")).failed();
    assert!(error.contains("did not answer"), "{error}");
}

#[test]
fn a_connection_whose_other_end_is_killed_was_cut() {
    let Some(scene) = Scene::new() else { return };
    let mut listener = scene.listen(["--from", "loopback"]);
    let mut caller = scene.connect();
    listener.says(b"so far\n");
    caller.hears("so far");
    listener.process.kill().unwrap();
    assert_eq!(caller.status(), Some(1));
    caller.hears_of("the connection was closed");
    assert_eq!(caller.heard(), b"so far\n");
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let Some(scene) = Scene::new() else { return };
    let mut listener = scene.listen(["--from", "loopback"]);
    let mut process = start(&mut scene.command(["connect", "loopback", &scene.service]));
    drop(process.take_stdout());
    listener.says(&[b'x'; 1 << 16]);
    assert_eq!(process.wait(PATIENCE).unwrap().code(), Some(0));
}

#[test]
fn a_service_that_is_disabled_is_not_listened_for() {
    let Some(scene) = Scene::new() else { return };
    scene.world.ok(["service", "disable", &scene.service]);
    let listen = || scene.command(["listen", &scene.service, "--from", "children"]);
    let error = scene.run(&mut listen()).failed();
    for part in ["disabled", "service enable"] {
        assert!(error.contains(part), "{error}");
    }
    scene.world.ok(["service", "enable", &scene.service]);
    Talker::listening(&mut listen());
}
