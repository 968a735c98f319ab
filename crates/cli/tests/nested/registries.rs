//! A connection between the host and a container in a VM passes two registries, and each of them decides.

use hvsock_testkit::nested::{Listens, Probe};

use crate::partitions::Partitions;
use crate::reading::Place::{Box, Db, Host, Web};
use crate::stage::HOST;

const SERVICE: &str = "Crossing";
const PORT: &str = "7300";

/// What happens in each way: from the host to each container, and from each container to the host.
struct Ways<'a>(&'a Partitions);

impl Ways<'_> {
    /// Checks the outcome of the four: a refusal's label, or `ok`.
    #[track_caller]
    fn are(&self, what: &str, want: [&str; 4]) {
        let partitions = self.0;
        let attempts = [(Host, "web/box"), (Host, "web/db"), (Box, HOST), (Db, HOST)];
        let seen = attempts.map(|(from, to)| {
            let seen = partitions.probe(from).connect(to, PORT);
            seen.map_or_else(|refused| refused.reason, |_| "ok".to_owned())
        });
        assert_eq!(seen, want.map(str::to_owned), "{what}");
    }
}

/// Listens in all three, again where the listener was closed with the registration.
fn listen(partitions: &Partitions) {
    for (at, from, name) in [(Host, "any", "host"), (Box, HOST, "box"), (Db, HOST, "db")] {
        let probe = partitions.probe(at);
        probe.unlisten(from, PORT);
        probe
            .listen(from, PORT, Listens::As(name))
            .expect("listening");
    }
}

#[test]
fn a_connection_between_the_host_and_a_container_in_a_vm_must_be_allowed_by_both_registries() {
    let Some(partitions) = Partitions::new() else {
        return;
    };
    let ways = Ways(&partitions);
    let (host, vm) = (partitions.probe(Host), partitions.probe(Web));
    let service =
        |at: &Probe, arguments: &[&str]| at.hvsock(&[&["service"], arguments].concat()).ok();
    ways.are("registered nowhere", ["unregistered"; 4]);
    service(vm, &["register", SERVICE, "--port", PORT]);
    ways.are("registered in the VM", ["unregistered"; 4]);
    service(vm, &["unregister", SERVICE]);
    service(host, &["register", SERVICE, "--port", PORT]);
    ways.are("registered on the host", ["unregistered"; 4]);
    service(vm, &["register", SERVICE, "--port", PORT]);
    ways.are("registered in both, without a listener", ["no_listener"; 4]);

    listen(&partitions);
    ways.are("registered in both", ["ok"; 4]);

    // Disabled: in the VM for all, on the host for all, for the VM, for one container.
    for (at, arguments, want) in [
        (vm, &[][..], ["disabled"; 4]),
        (host, &[], ["disabled"; 4]),
        (host, &["--vm", "web"], ["disabled"; 4]),
        (
            host,
            &["--vm", "web/box"],
            ["disabled", "ok", "disabled", "ok"],
        ),
        (vm, &["--vm", "db"], ["ok", "disabled", "ok", "disabled"]),
    ] {
        let words = |verb| [&[verb, SERVICE], arguments].concat();
        service(at, &words("disable"));
        ways.are(
            &format!("disabled in {} {arguments:?}", at.partition()),
            want,
        );
        service(at, &words("enable"));
        listen(&partitions);
        ways.are("enabled again", ["ok"; 4]);
    }

    // Access rules of the host name the VM or one container.
    service(host, &["deny", SERVICE, "--partition", "*"]);
    ways.are(
        "the host allows no partition",
        ["ok", "ok", "denied", "denied"],
    );
    service(host, &["allow", SERVICE, "--partition", "web/db"]);
    ways.are(
        "the host allows one container",
        ["ok", "ok", "denied", "ok"],
    );
    service(host, &["allow", SERVICE, "--partition", "web"]);
    ways.are("the host allows the VM", ["ok"; 4]);
    service(host, &["reset", SERVICE]);

    // Those of the VM name its containers and its host.
    service(vm, &["deny", SERVICE, "--partition", "*"]);
    ways.are("the VM allows no partition", ["denied"; 4]);
    service(vm, &["allow", SERVICE, "--partition", "box"]);
    ways.are(
        "the VM allows one container",
        ["denied", "denied", "ok", "denied"],
    );
    for parent in ["parent", HOST] {
        service(vm, &["allow", SERVICE, "--partition", parent]);
        ways.are("the VM allows its host", ["ok", "ok", "ok", "denied"]);
        service(vm, &["deny", SERVICE, "--partition", parent]);
        ways.are(
            "the VM denies its host",
            ["denied", "denied", "ok", "denied"],
        );
    }
    service(vm, &["reset", SERVICE]);
    ways.are("no rules", ["ok"; 4]);
}
