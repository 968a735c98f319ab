//! Containers in a VM that has a broker, and that VM.

use hvsock_testkit::nested::Listens;

use crate::stage::{Stage, VM};

#[test]
fn containers_that_runc_starts_in_a_vm_and_that_vm_reach_each_other_through_its_broker() {
    let Some(stage) = Stage::new() else { return };
    let (vm, boxes) = (&stage.vm, ["box", "db"].map(|name| stage.container(name)));
    vm.hvsock(&["service", "register", "Inside", "--port", "7000"])
        .ok();
    vm.listen("children", "Inside", Listens::As("the VM"))
        .expect("listening");
    for container in &boxes {
        let (name, probe) = (container.name(), container.probe());
        // Namespaces of its own: its first process is the probe.
        assert_eq!(
            probe.run(&["cat", "/proc/1/comm"], "").ok(),
            "hvsock-probe\n"
        );
        for target in ["parent", "silohost"] {
            let connected = probe.connect(target, "Inside").expect("connected");
            assert_eq!(connected.listener, "the VM", "{name} to {target}");
            assert_eq!(connected.seen_as, name, "{name} to {target}");
        }
        probe
            .listen("parent", "Inside", Listens::As(name))
            .expect("listening");
        let id = vm.hvsock(&["container", "id", name]).ok();
        for target in [name, id.trim()] {
            let connected = vm.connect(target, "Inside").expect("connected");
            assert_eq!((&*connected.listener, &*connected.seen_as), (name, VM));
        }
    }
    // Siblings do not reach each other without a common group.
    let refused = boxes[0]
        .probe()
        .connect("db", "Inside")
        .expect_err("refused");
    assert_eq!(refused.reason, "not_reachable", "{}", refused.text);

    // The same service of the host is another one, which a container of the host reaches.
    let on_host = stage.container_on_host("edge");
    let error = on_host.probe().connect("parent", "Inside");
    assert_eq!(error.expect_err("refused").reason, "unregistered");
    stage.world.register("Outside");
    stage
        .host
        .listen("children", "Outside", Listens::As("the host"))
        .expect("listening");
    let connected = on_host
        .probe()
        .connect("parent", "Outside")
        .expect("connected");
    assert_eq!(
        (&*connected.listener, &*connected.seen_as),
        ("the host", "edge")
    );
}
