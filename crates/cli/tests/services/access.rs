//! Who may use a guest's services, and who may offer them: rules by the command and by files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hvsock_testkit::require;
use serde_json::json;

use crate::fixture::{BOX, Fixture};
use crate::util::{Completed, Running, World, eventually, folder, hvsock};

const SESSION: &str = "hvsock session";
const SESSION_FILE: &str = "services/0000038f-facb-11e6-bd58-64006a7986d3.toml";
/// A user without rights, in a group without rights.
const OTHER: u32 = 65534;
/// A group that the operators of one test are in.
const OPERATORS: u32 = 64321;

/// Runs `hvsock --dir … ARGUMENTS` as another user of this machine, with one group.
fn as_user(world: &World, gid: u32, arguments: &[&str]) -> Completed {
    let mut command = world.command(arguments);
    // std clears the supplementary groups.
    Completed::of(command.uid(OTHER).gid(gid))
}

fn id_in_box(world: &World) -> Completed {
    as_user(world, OTHER, &["exec", BOX, "--", "id", "-u"])
}

/// Asserts that `exec` was refused, with the exit status of a command that was not run. Returns stderr.
fn not_run(done: Completed) -> String {
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (Some(125), ""),
        "{done:#?}"
    );
    done.stderr
}

#[test]
fn a_user_whom_root_allows_gets_a_shell_in_a_guest_until_root_denies_it_again() {
    let Some(()) = require::root() else { return };
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let world = &fixture.world;
    let refused = not_run(id_in_box(world));
    assert!(
        refused.contains("built-in: connect.users = []"),
        "{refused}"
    );
    let help = format!("service allow 911 --user {}", nobody());
    assert!(refused.contains(&help), "{refused}");

    let user = OTHER.to_string();
    let allowed = world.run(["service", "allow", SESSION, "--user", &user]);
    let want = format!("user {user} may now connect to `{SESSION}`\n");
    assert_eq!(
        (allowed.code, allowed.stderr.as_str()),
        (Some(0), want.as_str())
    );
    assert_eq!(id_in_box(world).ok(), "0\n");
    let again = world.run(["service", "allow", SESSION, "--user", &nobody()]);
    assert!(
        again.stderr.contains("already (connect.users = ["),
        "{}",
        again.stderr
    );
    let shown = world.ok(["service", "show", SESSION]);
    let line = shown
        .lines()
        .find(|line| line.starts_with("connect"))
        .unwrap();
    assert!(
        line.contains(&user) && line.contains(SESSION_FILE),
        "{shown}"
    );
    // Other services of the guest stay closed.
    let copy = as_user(world, OTHER, &["kvp", "list", BOX]).failed();
    assert!(copy.contains("connect.users = []"), "{copy}");

    // By name what was allowed by number.
    let denied = world.run(["service", "deny", SESSION, "--user", &nobody()]);
    assert!(
        denied.stderr.contains("may no longer connect"),
        "{}",
        denied.stderr
    );
    assert!(not_run(id_in_box(world)).contains("built-in: connect.users = []"));
    assert!(!world.dir().join(SESSION_FILE).exists(), "nothing is left");
}

/// The name of the user [`OTHER`] on this machine, or its number.
fn nobody() -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd
        .lines()
        .find(|line| line.split(':').nth(2) == Some("65534"));
    let name = line.and_then(|line| line.split(':').next());
    name.map_or_else(|| OTHER.to_string(), str::to_owned)
}

#[test]
fn who_is_still_allowed_after_a_denial_is_an_error_with_the_rule() {
    let world = World::new();
    let root = world.run(["service", "deny", SESSION, "--user", "root"]);
    let error = root.failed();
    assert!(error.contains("root is always allowed"), "{error}");
    world.ok(["service", "register", "open", "--port", "2761"]);
    let user = OTHER.to_string();
    let one_of_all = world
        .run(["service", "deny", "open", "--user", &user])
        .failed();
    assert!(one_of_all.contains("a list cannot exclude"), "{one_of_all}");
    for (arguments, reason) in [
        (["--user", "no-such-user"], "has no user \"no-such-user\""),
        (
            ["--group", "no-such-group"],
            "has no group \"no-such-group\"",
        ),
        (["--partition", "nowhere"], "no partition `nowhere`"),
        (["--vm", "nowhere"], "no partition `nowhere`"),
    ] {
        let mut command = vec!["service", "allow", SESSION, "--user", "1"];
        command.extend(arguments);
        let error = world.run(command).failed();
        assert!(error.contains(reason), "{error}");
    }
    let shown = world.json(["service", "show", SESSION, "--json"]);
    assert_eq!(shown["built_in"], true);
    assert_eq!(shown["rules"]["connect"]["users"], json!([]));
    assert_eq!(shown["rules"]["connect"]["source"], "built_in");
}

#[test]
fn a_denial_names_the_guests_that_have_a_rule_of_their_own() {
    let world = World::new();
    world.container("web");
    let user = OTHER.to_string();
    world.ok(["service", "allow", SESSION, "--user", &user, "--vm", "web"]);
    world.ok(["service", "allow", SESSION, "--user", &user, "--group", "1"]);
    let denied = world.run(["service", "deny", SESSION, "--user", &user]);
    assert!(
        denied.stderr.contains("but still for web"),
        "{}",
        denied.stderr
    );
    let everywhere = [
        "service",
        "deny",
        SESSION,
        "--user",
        &user,
        "--everywhere",
        "--json",
    ];
    let denied = world.json(everywhere);
    assert_eq!(denied["entries"][0]["exceptions"], json!([]));
    assert_eq!(denied["entries"][0]["changed_for"], json!(["web"]));
    assert_eq!(denied["entries"][0]["allowed"], false);
    let shown = world.ok(["service", "show", SESSION]);
    // The group that is allowed for all is not allowed there.
    assert!(shown.contains("[vm.web] in services/"), "{shown}");
    world.ok(["service", "reset", SESSION]);
    assert!(!world.dir().join(SESSION_FILE).exists());
}

#[test]
fn a_change_everywhere_names_the_partitions_whose_own_rules_it_changed() {
    let world = World::new();
    world.container("web");
    let user = OTHER.to_string();
    let session = |verb, more: &[&str]| {
        let command = [&["service", verb, SESSION], more].concat();
        world.run(command)
    };
    // Numbers are the same with leading zeros.
    let zeros = format!("000{user}");
    session("allow", &["--user", &zeros, "--vm", "web"]).ok();
    let denied = session("deny", &["--user", &user, "--everywhere"]);
    let told = format!("user {user} may no longer connect to `{SESSION}` with web");
    assert!(denied.stderr.contains(&told), "{}", denied.stderr);
    assert!(!world.dir().join(SESSION_FILE).exists(), "as it was");
    session("allow", &["--bind", "--any-user", "--vm", "web"]).ok();
    let denied = session("deny", &["--bind", "--any-user", "--everywhere"]);
    assert!(denied.stderr.contains("with web"), "{}", denied.stderr);
    assert!(!world.dir().join(SESSION_FILE).exists(), "as it was");
    // A child that is shut out of what holds for all.
    session("allow", &["--user", &user]).ok();
    session("deny", &["--user", &user, "--vm", "web"]).ok();
    let allowed = session("allow", &["--user", &user, "--everywhere"]);
    let told = format!("user {user} may now connect to `{SESSION}` with web");
    assert!(allowed.stderr.contains(&told), "{}", allowed.stderr);
}

#[test]
fn a_guest_that_was_disabled_and_enabled_follows_a_later_change_for_all() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let world = &fixture.world;
    let exec = || world.run(["exec", BOX, "--", "true"]);
    for verb in ["disable", "enable"] {
        world.ok(["container", "integration", BOX, verb, "session"]);
    }
    world.ok(["service", "disable", SESSION]);
    assert!(not_run(exec()).contains("disabled by enabled = false"));
    let enable = ["container", "integration", BOX, "enable", "session"];
    let refused = world.run(enable).failed();
    assert!(
        refused.contains("is disabled for all partitions"),
        "{refused}"
    );
    let help = format!("service enable '{SESSION}' --vm {BOX} --override");
    assert!(refused.contains(&help), "{refused}");

    world.ok(["service", "enable", SESSION, "--vm", BOX, "--override"]);
    eventually("the exception holds", || exec().code == Some(0));
    let disabled = world.run(["service", "disable", SESSION]);
    let text = format!("it is still enabled for {BOX}");
    assert!(disabled.stderr.contains(&text), "{}", disabled.stderr);
    let disabled = world.json(["service", "disable", SESSION, "--json"]);
    assert_eq!(disabled["exceptions"], json!([BOX]));
    world.ok(["service", "disable", SESSION, "--everywhere"]);
    not_run(exec());
    world.ok(["service", "enable", SESSION]);
    assert!(!world.dir().join(SESSION_FILE).exists(), "as it was");
}

#[test]
fn a_partial_file_of_a_guests_service_lets_no_user_in() {
    let Some(()) = require::root() else { return };
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let world = &fixture.world;
    fs::write(
        world.dir().join("defaults.toml"),
        "connect.users = [\"*\"]\n",
    )
    .unwrap();
    for text in [
        "name = \"hvsock session\"\nenabled = true\n",
        "[vm.box]\nenabled = true\n",
        "purpose = \"P\"\n",
    ] {
        let file = format!("creator = \"by hand\"\n{text}");
        fs::write(world.dir().join(SESSION_FILE), file).unwrap();
        eventually("the file is read", || {
            let shown = world.json(["service", "show", SESSION, "--json"]);
            shown["creator"] == "by hand"
        });
        let refused = not_run(id_in_box(world));
        assert!(
            refused.contains("built-in: connect.users = []"),
            "{text}: {refused}"
        );
        fs::remove_file(world.dir().join(SESSION_FILE)).unwrap();
        eventually("the file is gone", || {
            let shown = world.json(["service", "show", SESSION, "--json"]);
            shown["creator"] == "hvsock"
        });
    }
}

/// The endpoint of a container, reachable by other users as it is when mounted into the container.
fn mounted(world: &World) -> PathBuf {
    let endpoint = world.container("cage");
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(world.dir().join("containers"), mode).unwrap();
    endpoint
}

/// A command that listens for the session service as a process of a container, started by `prefix`.
fn listener(endpoint: &Path, prefix: &[&str]) -> Command {
    let mut command = Command::new(prefix[0]);
    command.args(&prefix[1..]).arg(hvsock().get_program());
    command.args([
        "--quiet", "listen", SESSION, "--from", "parent", "--keep", "--", "cat",
    ]);
    command
        .env("HVSOCK_ENDPOINT", endpoint)
        .stdin(Stdio::null());
    command
}

#[test]
fn only_root_of_a_container_may_listen_in_place_of_its_agent() {
    let Some(()) = require::root() else { return };
    let world = World::new();
    let endpoint = mounted(&world);
    let user = [
        "setpriv",
        "--reuid",
        "1000",
        "--regid",
        "1000",
        "--clear-groups",
    ];
    let join = |one: &[&'static str], other: &[&'static str]| [one, other].concat();
    let own_namespace = ["unshare", "--user", "--map-root-user"];
    let can_unshare = {
        let mut command = Command::new("setpriv");
        command.args(&user[1..]).args(own_namespace).arg("true");
        Completed::of(&mut command).code == Some(0)
    };
    let mut refused = vec![user.to_vec()];
    let own_pids = ["--pid", "--fork", "--kill-child"];
    if can_unshare {
        // A user who makes itself root in namespaces of its own, in a container that shares the PID
        // namespace, and in one that does not.
        refused.push(join(&user, &join(&own_namespace, &own_pids)));
        let container = join(&["unshare", "--pid", "--fork", "--kill-child"], &user);
        refused.push(join(&user, &own_namespace));
        refused.push(join(&container, &own_namespace));
        refused.push(join(
            &container,
            &join(&own_namespace, &["--pid", "--fork"]),
        ));
    }
    for prefix in &refused {
        let error = Completed::of(&mut listener(&endpoint, prefix)).failed();
        assert!(
            error.contains("only_root_binds = true"),
            "{prefix:?}: {error}"
        );
        assert!(error.contains("run it as root there"), "{error}");
    }
    // Root of a container of root, without a user namespace and with one.
    let mut accepted = vec![vec!["env"]];
    if can_unshare {
        accepted.push(join(&own_namespace, &own_pids));
    }
    for prefix in &accepted {
        let _listening = world.listening(&mut listener(&endpoint, prefix));
    }
    // The operator may waive it for one container.
    let waive = [
        "service",
        "allow",
        SESSION,
        "--bind",
        "--any-user",
        "--vm",
        "cage",
    ];
    world.ok(waive);
    eventually("no listener is left", || {
        world.listeners() == host_listeners(&world)
    });
    let _listening = world.listening(&mut listener(&endpoint, &user));
}

/// The listeners of the broker's own services.
fn host_listeners(world: &World) -> u64 {
    let listed = world.json(["service", "list", "--all", "--json"]);
    let all = listed.as_array().unwrap().iter();
    let counts = all.filter(|one| one["name"] != SESSION);
    counts.map(|one| one["listeners"].as_u64().unwrap()).sum()
}

#[test]
fn members_of_the_operator_group_may_do_what_root_may() {
    let Some(()) = require::root() else { return };
    let folder = folder();
    let run = |gid: u32, arguments: &[&str]| {
        let mut command = hvsock();
        command.arg("--dir").arg(folder.path()).args(arguments);
        Completed::of(command.uid(OTHER).gid(gid))
    };
    let mut broker = hvsock();
    broker.arg("--dir").arg(folder.path());
    let group = OPERATORS.to_string();
    broker.args(["broker", "--operator-group", &group]);
    let mut broker = Running::start(broker.stdout(Stdio::piped()));
    assert!(broker.line().starts_with("hvsock broker ready"));

    let register = ["service", "register", "backup", "--port", "2761"];
    let refused = run(OTHER, &register).failed();
    let who = format!("only root or a member of the group {group} may change this");
    assert!(refused.contains(&who), "{refused}");
    run(OPERATORS, &register).ok();
    run(
        OPERATORS,
        &["service", "deny", "backup", "--bind", "--user", "*"],
    )
    .ok();
    let why = |gid| run(gid, &["why", "any", "backup", "--listen"]);
    let allowed = why(OPERATORS);
    let member = "a member of the operators' group is always allowed";
    assert!(allowed.stdout.contains(member), "{}", allowed.stdout);
    assert!(why(OTHER).stdout.contains("refused"));
    // A group that does not exist is no group of operators.
    let mut unknown = hvsock();
    unknown.arg("--dir").arg(folder.path().join("other"));
    unknown.args(["broker", "--operator-group", "no-such-group"]);
    let error = Completed::of(&mut unknown).failed();
    assert!(error.contains("has no group \"no-such-group\""), "{error}");
}
