//! `hvsock vm` and `hvsock status` on a machine without Hyper-V.

use hvsock_hyperv::Missing;

use crate::util::{World, run};

/// Whether this machine has no Hyper-V, as Wine. Otherwise prints that the test is skipped, because the
/// expected output depends on the machine's virtual machines.
fn without_hyper_v() -> bool {
    let (vms, missing) = hvsock_hyperv::virtual_machines();
    let without = vms.is_empty() && missing.contains(&Missing::HyperV);
    if !without {
        eprintln!("skipped: this machine has Hyper-V");
    }
    without
}

#[test]
fn vm_list_names_the_feature_to_enable() {
    if !without_hyper_v() {
        return;
    }
    let error = run(["vm", "list"]).failed();
    for part in ["Hyper-V is not enabled", "Enable-WindowsOptionalFeature"] {
        assert!(error.contains(part), "{error}");
    }
    run(["vm", "list", "--json"]).failed();
}

#[test]
fn a_vm_is_looked_up_by_any_name_and_by_its_guid() {
    if !without_hyper_v() {
        return;
    }
    for name in [
        "web",
        "Windows 11 (dev)",
        "9d7f2c1e-0000-4000-8000-000000000001",
    ] {
        for command in ["id", "show"] {
            let error = run(["vm", command, name]).failed();
            assert!(error.contains(name), "{error}");
            assert!(error.contains("Hyper-V is not enabled"), "{error}");
        }
    }
}

#[test]
fn a_policy_for_an_unknown_vm_changes_nothing() {
    if !without_hyper_v() {
        return;
    }
    let world = World::new();
    let name = world.name("backup");
    world.register(&name);
    for vm in ["Windows 11", "9d7f2c1e-0000-4000-8000-000000000001"] {
        run(["service", "disable", &name, "--vm", vm]).failed();
    }
    assert_eq!(world.show(&name)["enabled"], true);
}

#[test]
fn status_shows_the_services_and_that_hyper_v_is_missing() {
    let world = World::new();
    world.register(&world.name("backup"));
    let text = world.ok(["status"]);
    assert!(
        text.starts_with("hvsock 0.") && text.contains("service"),
        "{text}"
    );
    let json = world.json(["status", "--json"]);
    assert!(json["services"].as_u64() >= Some(1), "{json}");
    if without_hyper_v() {
        assert!(text.contains("Hyper-V is not enabled"), "{text}");
        assert_eq!(json["vms"].as_array().map(Vec::len), Some(0));
        assert!(json["problems"][0].as_str().unwrap().contains("Hyper-V"));
    }
}
