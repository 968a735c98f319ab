//! Both brokers are killed and started again in turn.

use hvsock_testkit::nested::{Connected, Listens, Refused};
use hvsock_testkit::wait;

use crate::partitions::Partitions;
use crate::reading::Place::{Box, Host, Web};
use crate::stage::HOST;

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
