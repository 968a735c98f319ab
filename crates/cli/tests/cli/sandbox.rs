//! The confinement of the broker's process and threads: `hvsock broker --sandbox`, `hvsock status --confinement`.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use hvsock_broker::sandbox::CAPABILITIES;
use hvsock_sys::capabilities::Set;
use hvsock_sys::seccomp::{Action, ArgEq, Filter, Rule, restrict};
use serde_json::Value;

use crate::upgrade;
use crate::util::{Completed, hvsock};

/// A thread of a process.
#[derive(Debug)]
struct Thread {
    name: String,
    has_filter: bool,
    gains_privileges: bool,
    capabilities: Set,
}

fn threads(pid: u64) -> Vec<Thread> {
    let folder = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let statuses = folder.filter_map(|task| {
        // Threads end.
        fs::read_to_string(task.unwrap().path().join("status")).ok()
    });
    let threads = statuses.map(|status| {
        let field = |key: &str| {
            let mut lines = status.lines();
            let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            value.unwrap().trim().to_owned()
        };
        Thread {
            name: field("Name"),
            has_filter: field("Seccomp") == "2",
            gains_privileges: field("NoNewPrivs") == "0",
            capabilities: Set::of_bits(u64::from_str_radix(&field("CapPrm"), 16).unwrap()),
        }
    });
    threads.collect()
}

fn confinement(status: &Value) -> &Value {
    &status["status"]["confinement"]
}

/// Whether the kernel lets this test install filters.
fn has_seccomp() -> bool {
    fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").is_ok()
}

/// A broker that confines itself.
fn confined() -> upgrade::World {
    upgrade::World::with(|command| {
        command.env("HVSOCK_SANDBOX", "on");
    })
}

fn assert_confined(pid: u64) {
    let kept = Set::named(CAPABILITIES);
    let threads = threads(pid);
    for thread in &threads {
        assert!(!thread.gains_privileges, "{thread:?}");
        let within = thread.capabilities.and(kept);
        assert_eq!(within, thread.capabilities, "{thread:?}");
    }
    for name in [
        "hvsock-core",
        "hvsock-data-0",
        "hvsock-retry",
        "hvsock-watch",
    ] {
        let mut named = threads.iter().filter(|thread| thread.name == name);
        let thread = named.next();
        let thread = thread.unwrap_or_else(|| panic!("{name}: {threads:#?}"));
        assert!(thread.has_filter || !has_seccomp(), "{thread:?}");
    }
}

#[test]
fn threads_of_the_broker_are_confined() {
    let world = confined();
    world.ok(&["-q", "container", "add", "web"]);
    world.ok(&["-q", "vm", "add", "db", "--cid", "77"]);
    let pid = world.pid();
    assert_confined(pid);
    let threads = threads(pid);
    let data = threads.iter().find(|thread| thread.name == "hvsock-data-0");
    assert_eq!(data.unwrap().capabilities, Set::NONE);

    let status = world.json(&["status", "--json"]);
    let confinement = confinement(&status);
    assert_eq!(confinement["enabled"], true);
    if has_seccomp() {
        let kinds = confinement["threads"].as_array().unwrap();
        let mut filtered = kinds.iter().map(|kind| &kind["seccomp"]);
        assert!(kinds.len() >= 8, "{kinds:#?}");
        assert!(filtered.all(|has| *has == true), "{kinds:#?}");
    }
    let text = world.ok(&["status", "--confinement"]);
    assert!(text.contains("\nVM data "), "{text}");
}

#[test]
fn an_upgraded_broker_is_confined_as_the_one_before() {
    let world = confined();
    let before = world.json(&["status", "--json"]);
    for _ in 0..2 {
        world.upgrade();
        assert_confined(world.pid());
    }
    let after = world.json(&["status", "--json"]);
    for key in [
        "enabled",
        "landlock_abi",
        "capabilities",
        "missing",
        "denied",
    ] {
        let (before, after) = (&confinement(&before)[key], &confinement(&after)[key]);
        assert_eq!(before, after, "{key}");
    }
}

#[test]
fn without_the_sandbox_no_thread_has_a_filter_and_the_status_says_so() {
    let world = upgrade::World::new();
    let threads = threads(world.pid());
    let mut free = threads.iter().map(|thread| !thread.has_filter);
    assert!(free.all(|is_free| is_free), "{threads:?}");
    let status = world.json(&["status", "--json"]);
    assert_eq!(confinement(&status)["enabled"], false);
    assert_eq!(confinement(&status)["threads"], Value::Array(vec![]));
    let text = world.ok(&["status", "--confinement"]);
    assert!(text.contains("not confined"), "{text}");
}

/// A filter as of a container that forbids what a confinement takes.
fn forbidding() -> Filter {
    const NO_NEW_PRIVS: [ArgEq; 1] = [ArgEq {
        index: 0,
        value: 38,
    }];
    let denied = |syscall, args| Rule {
        syscall,
        args,
        action: Action::Errno(1),
    };
    let rules = [
        denied(libc::SYS_seccomp, &[]),
        denied(libc::SYS_landlock_create_ruleset, &[]),
        denied(libc::SYS_capset, &[]),
        denied(libc::SYS_prctl, &NO_NEW_PRIVS),
    ];
    Filter::build(&rules).unwrap()
}

#[test]
fn where_confinement_is_forbidden_the_broker_works_and_says_what_is_missing() {
    let world = upgrade::World::with(|command| {
        restrict(command.env("HVSOCK_SANDBOX", "on"), &forbidding()).unwrap();
    });
    let status = world.json(&["status", "--json"]);
    let confinement = confinement(&status);
    assert_eq!(confinement["enabled"], true);
    assert_eq!(confinement["landlock_abi"], Value::Null);
    let missing = confinement["missing"].as_array().unwrap();
    let text = world.ok(&["status"]);
    for part in ["privileges", "capabilities", "system call", "Landlock"] {
        let named = |line: &Value| line.as_str().unwrap().contains(part);
        assert!(missing.iter().any(named), "{part}: {missing:#?}");
        let named = |line: &str| line.starts_with("confinement: ") && line.contains(part);
        assert!(text.lines().any(named), "{part}: {text}");
    }
    let kinds = confinement["threads"].as_array().unwrap();
    let is_free = |kind: &Value| kind["seccomp"] == false && kind["landlock"] == false;
    assert!(kinds.iter().all(is_free), "{kinds:#?}");

    world.register("echo");
    let listener = world.listen("echo");
    world.round_trip(&listener, "echo");
}

#[test]
fn a_vm_for_a_user_needs_the_capability_and_the_error_says_so() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    // As in a container that has all capabilities but this one.
    let world = upgrade::World::with(|command| {
        let rules = [libc::SYS_fchownat, libc::SYS_chown, libc::SYS_lchown].map(|syscall| Rule {
            syscall,
            args: &[],
            action: Action::Errno(1),
        });
        restrict(command, &Filter::build(&rules).unwrap()).unwrap();
    });
    let add = ["vm", "add", "db", "--cid", "78", "--user", "nobody"];
    let error = world.run(&add).failed();
    assert!(
        error.contains("CAP_CHOWN") && error.contains("nobody"),
        "{error}"
    );
    // Nothing is left of it.
    world.ok(&["-q", "vm", "add", "db", "--cid", "78"]);
}

#[test]
fn a_confined_broker_of_root_gives_the_socket_of_a_vm_to_its_user() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let world = confined();
    world.ok(&["-q", "vm", "add", "db", "--cid", "79", "--user", "nobody"]);
    let shown = world.json(&["vm", "show", "db", "--json"]);
    let socket = fs::metadata(shown["socket"].as_str().unwrap()).unwrap();
    let nobody = hvsock_sys::accounts::uid("nobody").unwrap();
    assert_eq!(socket.uid(), nobody);
}

#[test]
fn an_unknown_confinement_is_wrong_usage() {
    let mut command = hvsock();
    command.args(["broker", "--sandbox", "maybe"]);
    let error = Completed::of(&mut command).usage_error();
    assert!(error.contains("strict"), "{error}");
}
