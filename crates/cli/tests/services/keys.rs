//! Keys of OpenSSH for a server and a client.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use hvsock_testkit::{TempFolder, require};

use crate::util::{Completed, World};

/// A folder with new keys for a server and a client, and the server's configuration.
pub struct Keys {
    folder: TempFolder,
    sshd: PathBuf,
}

impl Keys {
    /// Skips the test (`None`) without OpenSSH.
    pub fn new() -> Option<Self> {
        let sshd = require::sshd()?;
        // A server of root does not start without this folder, which only its service makes.
        let _ = fs::create_dir("/run/sshd");
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

    /// The path of OpenSSH's server.
    pub fn sshd(&self) -> &Path {
        &self.sshd
    }

    pub fn generate(&self, name: &str) {
        let _ = fs::remove_file(self.at(name));
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
        let done = Completed::of(command.arg(self.at(name)));
        assert_eq!(done.code, Some(0), "{done:?}");
    }

    /// The text of `sshd_config` with these paths.
    pub fn config(host_key: &Path, authorized_keys: &Path) -> String {
        format!(
            "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\n",
            host_key.display(),
            authorized_keys.display()
        )
    }

    /// A script that runs sshd with this configuration, for an agent on this machine.
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

    /// The command `hvsock ssh root@PARTITION … COMMAND`, without this machine's configuration of ssh.
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
