//! `hvsock ssh`, with OpenSSH's own client and server, of which the guest needs no network.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use hvsock_testkit::{TempFolder, require};

use crate::scene::{self, BOX, Scene};
use crate::util::{Done, Running, World};

/// A server's configuration with keys of its own, in a folder of its own, and the client's.
pub struct Keys {
    folder: TempFolder,
    sshd: PathBuf,
}

impl Keys {
    /// `None` without OpenSSH.
    pub fn new() -> Option<Self> {
        let sshd = require::sshd()?;
        let keys = Self {
            folder: TempFolder::new(),
            sshd,
        };
        keys.generate("host_key");
        keys.generate("client_key");
        let public = fs::read(keys.at("client_key.pub")).unwrap();
        fs::write(keys.at("authorized_keys"), public).unwrap();
        Some(keys)
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// OpenSSH's server.
    pub fn sshd(&self) -> &Path {
        &self.sshd
    }

    fn generate(&self, name: &str) {
        let _ = fs::remove_file(self.at(name));
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
        let done = Done::of(command.arg(self.at(name)));
        assert_eq!(done.code, Some(0), "{done:?}");
    }

    /// `sshd_config`, with the files where a guest has them.
    pub fn config(host_key: &Path, authorized_keys: &Path) -> String {
        format!(
            "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\n",
            host_key.display(),
            authorized_keys.display()
        )
    }

    /// A program that is sshd with this configuration, for an agent on this machine.
    pub fn program(&self) -> PathBuf {
        let config = Self::config(&self.at("host_key"), &self.at("authorized_keys"));
        fs::write(self.at("sshd_config"), config).unwrap();
        let script = format!(
            "#!/bin/sh\nexec {} -f {} \"$@\"\n",
            self.sshd.display(),
            self.at("sshd_config").display()
        );
        self.script("sshd", &script)
    }

    pub fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.at(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    /// `hvsock ssh root@PARTITION … COMMAND`, with nothing of this machine's own configuration.
    pub fn ssh(&self, world: &World, partition: &str, command: &str) -> Command {
        let mut ssh = world.command(["ssh", &format!("root@{partition}")]);
        let known = self.at("known_hosts");
        ssh.args(["-F", "/dev/null", "-o", "BatchMode=yes", "-i"])
            .arg(self.at("client_key"))
            .args(["-o", "IdentitiesOnly=yes", "-o"])
            .arg(format!("UserKnownHostsFile={}", known.display()))
            .args(["-o", "GlobalKnownHostsFile=/dev/null", command]);
        ssh
    }
}

#[test]
fn ssh_leads_to_an_sshd_that_is_started_for_it() {
    let Some(keys) = Keys::new() else { return };
    if !crate::util::is_root() {
        eprintln!("skipped: this sshd lets in its own user only, who is not root");
        return;
    }
    let mut scene = Scene::new();
    restart_agent(&mut scene, &keys.program());

    let mut input = vec![0; 1 << 20];
    for (n, byte) in input.iter_mut().enumerate() {
        *byte = (n % 251) as u8;
    }
    let cat = Done::bytes_with_input(&mut keys.ssh(&scene.world, BOX, "cat"), &input);
    assert!(cat == input);
    let mut fails = keys.ssh(&scene.world, BOX, "echo out; echo err >&2; exit 7");
    let fails = Done::of(&mut fails);
    assert_eq!(fails.code, Some(7), "{fails:?}");
    assert_eq!(fails.stdout, "out\n");
    assert!(fails.stderr.contains("err\n"), "{}", fails.stderr);

    // The host's key is known by the partition's id, and another one is refused.
    let known = fs::read_to_string(keys.at("known_hosts")).unwrap();
    let id = scene.world.endpoint().vm_id(&BOX.parse().unwrap()).unwrap();
    assert!(known.starts_with(&format!("hvsock/{id} ")), "{known}");
    keys.generate("host_key");
    let changed = Done::of(&mut keys.ssh(&scene.world, BOX, "true"));
    assert_eq!(changed.code, Some(255));
    assert!(changed.stderr.contains("HAS CHANGED"), "{}", changed.stderr);

    // An sshd that cannot serve says why.
    let script = "#!/bin/sh\necho no hostkeys available >&2\nexit 1\n";
    restart_agent(&mut scene, &keys.script("broken", script));
    let refused = scene.run(["nc", BOX, "ssh"]).failed();
    assert!(refused.contains("no hostkeys available"), "{refused}");
    restart_agent(&mut scene, Path::new("/nowhere/sshd"));
    let missing = scene.run(["nc", BOX, "ssh"]).failed();
    assert!(missing.contains("cannot start /nowhere/sshd"), "{missing}");
}

fn restart_agent(scene: &mut Scene, sshd: &Path) {
    scene.agent.child.kill().unwrap();
    scene.agent.child.wait().unwrap();
    let mut agent = scene::agent_at(&scene.endpoint);
    scene.agent = Running::start(agent.env("HVSOCK_SSHD", sshd));
    // What the old one offered is gone by the time it was waited for.
    scene::offered(&scene.world, BOX);
}
