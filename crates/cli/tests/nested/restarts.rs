//! Both brokers are killed and started again in turn.

use hvsock_testkit::nested::{Connected, Listens, Refused};
use hvsock_testkit::wait;

use crate::partitions::Partitions;
use crate::reading::Place::{Box, Host, Web};
use crate::stage::{HOST, Stage, VM};

const PORT: &str = "7400";

fn up(partitions: &Partitions) -> Result<Connected, Refused> {
    partitions.probe(Box).connect(HOST, PORT)
}

fn down(partitions: &Partitions) -> Result<Connected, Refused> {
    partitions.probe(Host).connect("web/box", PORT)
}

#[test]
fn a_broker_in_a_vm_that_is_killed_takes_its_containers_from_the_host_and_brings_them_back() {
    let Some(partitions) = Partitions::new() else {
        return;
    };
    for owner in [Host, Web] {
        let register = ["service", "register", "Lasting", "--port", PORT];
        partitions.probe(owner).hvsock(&register).ok();
    }
    partitions
        .probe(Host)
        .listen("any", PORT, Listens::As("host"))
        .expect("listening");
    let container = partitions.probe(Box);
    for turn in 0..2 {
        container
            .listen("any", PORT, Listens::As("box"))
            .expect("listening");
        assert_eq!(up(&partitions).expect("connected").seen_as, "web/box");
        assert_eq!(down(&partitions).expect("connected").seen_as, HOST);

        partitions.stage.guest.kill();
        // The host has them no longer, and the refusal says which partition is not there.
        wait::eventually("the host has lost the container", || {
            down(&partitions).is_err_and(|refused| refused.reason == "partition_unknown")
        });
        let listed = partitions.probe(Host).hvsock(&["container", "list"]).ok();
        assert!(!listed.contains("web/"), "{listed}");
        assert!(up(&partitions).is_err(), "turn {turn}");

        partitions.stage.guest.start();
        container.unlisten("any", PORT);
        wait::until_ok("the host has the container again", || {
            up(&partitions).map_err(|refused| refused.text)
        });
    }
}

#[test]
fn a_broker_of_a_host_that_is_killed_gets_its_vm_and_the_containers_in_it_back() {
    let Some(mut stage) = Stage::in_qemu() else {
        return;
    };
    let container = stage.container("box");
    let on_host = stage.container_on_host("edge");
    for at in [&stage.host, &stage.vm] {
        at.hvsock(&["service", "register", "Lasting", "--port", PORT])
            .ok();
    }
    container
        .probe()
        .listen("any", PORT, Listens::As("box"))
        .expect("listening");
    for turn in 0..2 {
        stage
            .host
            .listen("any", PORT, Listens::As("host"))
            .expect("listening");
        for (probe, to, seen_as) in [
            (container.probe(), HOST, "web/box"),
            (on_host.probe(), "parent", "edge"),
            (&stage.vm, "parent", VM),
            (&stage.host, "web/box", HOST),
        ] {
            let connected = wait::until_ok("all reach each other", || {
                probe.connect(to, PORT).map_err(|refused| refused.text)
            });
            assert_eq!(connected.seen_as, seen_as, "turn {turn}");
        }
        if turn == 1 {
            break;
        }

        stage.world.broker().kill();
        let refused = container.probe().connect(HOST, PORT);
        assert!(refused.is_err(), "{refused:?}");
        // Its own partitions do not need the host.
        let inside = stage.vm.connect("box", PORT).expect("connected");
        assert_eq!(inside.listener, "box");

        stage.world.start_broker();
        stage.host.unlisten("any", PORT);
        let monitor = stage.guest.guest().spare_monitor();
        let monitor = monitor.to_str().expect("a path in Unicode");
        stage.world.ok(["vm", "reconnect", VM, "--qmp", monitor]);
    }
}
