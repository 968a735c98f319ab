//! Between a host and its virtual machine, as far as they can be played.

use crate::scene::{GUEST, Scene, Talker};

/// Says in which partition a process is.
const INSIDE: &str = "HV_SHIM_PARTITION";

#[test]
fn a_guest_reaches_its_host_by_parent_and_the_host_knows_which_guest_it_is() {
    let Some(scene) = Scene::new() else { return };
    let echo = ["cmd", "/c", "echo %HVSOCK_PEER_VM_ID%"];
    let mut listener = scene.listen(["--from", "children", "--"].into_iter().chain(echo));
    let mut connect = scene.command(["connect", "parent", &scene.service]);
    let heard = scene.run(connect.env(INSIDE, GUEST)).ok();
    assert_eq!(heard.trim(), GUEST);
    assert_eq!(listener.status(), Some(0));
}

#[test]
fn a_host_reaches_its_guest_by_its_id() {
    let Some(scene) = Scene::new() else { return };
    let mut listen = scene.command(["listen", &scene.service, "--from", "parent"]);
    let mut guest = Talker::listening(listen.env(INSIDE, GUEST));
    let mut host = Talker::start(&mut scene.command(["connect", GUEST, &scene.service]));
    host.says(b"from the host");
    host.ends();
    assert_eq!(guest.heard(), b"from the host");
    guest.says(b"from the guest");
    guest.ends();
    assert_eq!(host.heard(), b"from the guest");
    assert_eq!((guest.status(), host.status()), (Some(0), Some(0)));
}

#[test]
fn a_guest_is_refused_what_its_host_has_not_registered() {
    let Some(scene) = Scene::new() else { return };
    let service = "0b2f1f0e-0000-4000-8000-0000000000ff";
    let mut connect = scene.command(["connect", "parent", service]);
    let error = scene.run(connect.env(INSIDE, GUEST)).failed();
    assert!(error.contains("cannot connect"), "{error}");
}
