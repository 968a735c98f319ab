//! `hvsock ssh` with OpenSSH's client and server. The guest needs no network.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use hvsock_testkit::require;

use crate::fixture::{self, BOX, Fixture};
use crate::keys::Keys;
use crate::util::{Completed, Running};

#[test]
fn ssh_reaches_an_sshd_that_the_agent_starts() {
    let Some(keys) = Keys::new() else { return };
    // An sshd without root accepts only its own user, and the command connects as root.
    let Some(()) = require::root() else { return };
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    restart_agent(&mut fixture, &keys.program());

    let mut input = vec![0; 1 << 20];
    for (n, byte) in input.iter_mut().enumerate() {
        *byte = (n % 251) as u8;
    }
    let cat = Completed::bytes_with_input(&mut keys.ssh(&fixture.world, BOX, "cat"), &input);
    assert!(cat == input);
    // A socket of a connection to a host of this name: ssh would use it if it looked there.
    let socket = keys.at(&format!("cm-root@{BOX}:22"));
    let of_host = UnixListener::bind(&socket).unwrap();
    of_host.set_nonblocking(true).unwrap();
    let config = format!(
        "ControlMaster auto\nControlPath {}/cm-%r@%h:%p\n",
        socket.parent().unwrap().display()
    );
    fs::write(keys.at("config"), config).unwrap();
    let mut ssh = fixture.world.command(["ssh", "-F"]);
    ssh.arg(keys.at("config"))
        .arg("-i")
        .arg(keys.at("client_key"));
    let known = format!("UserKnownHostsFile={}", keys.at("known_hosts").display());
    ssh.args([
        "-o",
        "BatchMode=yes",
        "-o",
        &known,
        "-l",
        "root",
        BOX,
        "echo here",
    ]);
    assert_eq!(Completed::of(&mut ssh).ok(), "here\n");
    assert!(of_host.accept().is_err());
    let others = fs::read_dir(socket.parent().unwrap()).unwrap();
    let others = others.filter(|it| {
        it.as_ref()
            .unwrap()
            .file_name()
            .as_bytes()
            .starts_with(b"cm-")
    });
    assert_eq!(others.count(), 1);
    let mut fails = keys.ssh(&fixture.world, BOX, "echo out; echo err >&2; exit 7");
    let fails = Completed::of(&mut fails);
    assert_eq!(fails.code, Some(7), "{fails:?}");
    assert_eq!(fails.stdout, "out\n");
    assert!(fails.stderr.contains("err\n"), "{}", fails.stderr);

    // The host key is recorded under the partition's id, and a changed key is refused.
    let known = fs::read_to_string(keys.at("known_hosts")).unwrap();
    let id = fixture
        .world
        .endpoint()
        .vm_id(&BOX.parse().unwrap())
        .unwrap();
    assert!(known.starts_with(&format!("hvsock/{id} ")), "{known}");
    keys.generate("host_key");
    let changed = Completed::of(&mut keys.ssh(&fixture.world, BOX, "true"));
    assert_eq!(changed.code, Some(255));
    assert!(changed.stderr.contains("HAS CHANGED"), "{}", changed.stderr);

    // The error of an sshd that fails is passed on.
    let script = "#!/bin/sh\necho no hostkeys available >&2\nexit 1\n";
    restart_agent(&mut fixture, &keys.script("broken", script));
    let refused = fixture.run(["nc", BOX, "ssh"]).failed();
    assert!(refused.contains("no hostkeys available"), "{refused}");
    restart_agent(&mut fixture, Path::new("/nowhere/sshd"));
    let missing = fixture.run(["nc", BOX, "ssh"]).failed();
    assert!(missing.contains("cannot start /nowhere/sshd"), "{missing}");
}

/// Options of `hvsock ssh` as ssh understands them with this configuration file.
fn settings(fixture: &Fixture, config: &Path, arguments: &[&str]) -> Vec<String> {
    let mut ssh = fixture.world.command(["ssh", "-G", "-F"]);
    let done = Completed::of(ssh.arg(config).args(arguments));
    done.ok().lines().map(str::to_owned).collect()
}

#[test]
fn the_ssh_configuration_of_a_host_does_not_apply_to_a_partition_of_its_name() {
    let Some(keys) = Keys::new() else { return };
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let dir = fixture.world.dir().display().to_string();
    let of_host = "User intruder\nPort 2222\nHostName other.example\nHostKeyAlias other\n\
         ForwardAgent yes\nRemoteCommand reboot\nLocalForward 1 localhost:2\n";
    let config = keys.at("config");
    fs::write(
        &config,
        format!(
            "Host {BOX} b* *x *o*x\n{of_host}Match originalhost {BOX}\n{of_host}Match host {BOX}\n{of_host}\
             Host hvsock/{BOX}/*\nUser alice\n\
             Host *\nControlMaster auto\nControlPersist 60\nControlPath {dir}/cm-%r@%h:%p\n\
             HostName %h.example\nProxyJump bastion\nCanonicalizeHostname always\n\
             CanonicalDomains example\nVerifyHostKeyDNS yes\nProxyUseFdpass yes\nHostKeyAlias all\n\
             KnownHostsCommand /usr/bin/echo other\nGlobalKnownHostsFile {dir}/other\n"
        ),
    )
    .unwrap();
    let id = fixture.world.endpoint().vm_id(&BOX.parse().unwrap());
    let found = settings(&fixture, &config, &[BOX]);
    let alias = format!("hostkeyalias hvsock/{}", id.unwrap());
    for expected in [
        "user alice",
        "port 22",
        "hostname hvsock/box/ssh",
        &alias,
        "forwardagent no",
        "canonicalizehostname false",
        "verifyhostkeydns false",
        "proxyusefdpass no",
    ] {
        assert!(found.iter().any(|line| line == expected), "{expected}");
    }
    let absent = |words: &str| !found.iter().any(|line| line.contains(words));
    assert!(absent("controlpath") && absent("proxyjump") && absent("remotecommand"));
    assert!(absent("localforward") && absent("other"), "{found:?}");
    assert!(found.contains(&"globalknownhostsfile /dev/null".to_owned()));
    assert!(found.iter().any(|line| line.starts_with("proxycommand ")));

    // What the command line names does apply.
    let path = format!("{dir}/own");
    let own = format!("ControlPath={path}");
    let found = settings(&fixture, &config, &["-l", "bob", BOX, "-o", &own]);
    assert!(found.contains(&format!("controlpath {path}")), "{found:?}");
    assert!(found.contains(&"user bob".to_owned()), "{found:?}");
    let refused = fixture.run(["ssh", BOX, "-J", "bastion"]).usage_error();
    assert!(refused.contains("ProxyJump is not an option"), "{refused}");
}

fn restart_agent(fixture: &mut Fixture, sshd: &Path) {
    fixture.kill_agent();
    let mut agent = fixture.agent_command();
    fixture.agent = Running::start(agent.env("HVSOCK_SSHD", sshd));
    fixture::wait_until_offered(&fixture.world, BOX);
}
