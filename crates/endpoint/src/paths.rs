//! Where a broker and its clients meet, decided from the environment without touching it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The folders of one broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    /// Sockets and the lock: gone after a reboot.
    pub run: PathBuf,
    /// Registrations and partitions: kept.
    pub config: PathBuf,
}

/// What decides where a broker's folders are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DirSource {
    /// Everything under one folder (`--dir`, `HVSOCK_DIR`).
    One(PathBuf),
    /// The machine's broker, run by root: `/run/hvsock` and `/etc/hvsock`.
    Root,
    /// A user's own broker: `$XDG_RUNTIME_DIR/hvsock` and `~/.config/hvsock`.
    User,
}

impl DirSource {
    /// The folder given, or else the one that fits the user.
    pub fn choose(dir: Option<PathBuf>, uid: u32) -> Self {
        match dir {
            Some(dir) => Self::One(dir),
            None if uid == 0 => Self::Root,
            None => Self::User,
        }
    }
}

impl Dirs {
    /// The folders that `source` means, with `env` to read `XDG_RUNTIME_DIR`, `XDG_CONFIG_HOME`
    /// and `HOME`; or the variable that is missing.
    pub fn resolve(
        source: DirSource,
        env: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, &'static str> {
        let set = |name| {
            env(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        match source {
            DirSource::One(dir) => Ok(Self {
                run: dir.clone(),
                config: dir,
            }),
            DirSource::Root => Ok(Self {
                run: "/run/hvsock".into(),
                config: "/etc/hvsock".into(),
            }),
            DirSource::User => {
                let run = set("XDG_RUNTIME_DIR")
                    .ok_or("XDG_RUNTIME_DIR")?
                    .join("hvsock");
                let config = set("XDG_CONFIG_HOME")
                    .or_else(|| set("HOME").map(|home| home.join(".config")))
                    .ok_or("HOME")?
                    .join("hvsock");
                Ok(Self { run, config })
            }
        }
    }

    /// The endpoint of the broker's own partition.
    pub fn endpoint(&self) -> PathBuf {
        self.run.join("endpoint")
    }

    /// The control API's socket.
    pub fn control(&self) -> PathBuf {
        self.run.join("control")
    }

    /// The lock that the running broker holds; its process id is inside.
    pub fn lock(&self) -> PathBuf {
        self.run.join("lock")
    }

    /// The folder of the containers' folders, closed to other users of the machine.
    pub fn containers(&self) -> PathBuf {
        self.run.join("containers")
    }

    /// The folder to mount into a container as `/run/hvsock`.
    pub fn container(&self, name: &str) -> PathBuf {
        self.containers().join(name)
    }

    /// The folder of the VMs' sockets, each of which is for the user that its VMM runs as.
    pub fn vms(&self) -> PathBuf {
        self.run.join("vm")
    }

    /// The socket to which the VMM of a VM connects its vhost-user-vsock device.
    pub fn vm_socket(&self, name: &str) -> PathBuf {
        self.vms().join(format!("{name}.sock"))
    }

    /// The registrations.
    pub fn services(&self) -> PathBuf {
        self.config.join("services")
    }

    /// What holds where a registration says nothing.
    pub fn defaults(&self) -> PathBuf {
        self.config.join("defaults.toml")
    }

    /// The partitions that were added.
    pub fn partitions(&self) -> PathBuf {
        self.config.join("partitions")
    }

    /// The endpoints that a client tries, first to last: the one that `HVSOCK_ENDPOINT` names and
    /// no other if it is set; else that of `dir` (`--dir`, `HVSOCK_DIR`) and no other; else the
    /// user's own broker's, then the machine's, which is also where a container has its own.
    pub fn endpoint_candidates(
        dir: Option<&Path>,
        env: impl Fn(&str) -> Option<OsString>,
    ) -> Vec<PathBuf> {
        let set = |name| {
            env(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        if let Some(dir) = dir {
            return vec![dir.join("endpoint")];
        }
        if let Some(endpoint) = set("HVSOCK_ENDPOINT") {
            return vec![endpoint];
        }
        if let Some(dir) = set("HVSOCK_DIR") {
            return vec![dir.join("endpoint")];
        }
        let own = set("XDG_RUNTIME_DIR").map(|run| run.join("hvsock/endpoint"));
        own.into_iter()
            .chain(["/run/hvsock/endpoint".into()])
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env<'a>(vars: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
        |name| {
            vars.iter()
                .find(|(n, _)| *n == name)
                .map(|(_, value)| value.into())
        }
    }

    #[test]
    fn a_user_needs_no_root() {
        let vars = [("XDG_RUNTIME_DIR", "/run/user/7"), ("HOME", "/home/u")];
        let dirs = Dirs::resolve(DirSource::choose(None, 7), env(&vars)).unwrap();
        assert_eq!(dirs.endpoint(), Path::new("/run/user/7/hvsock/endpoint"));
        assert_eq!(
            dirs.services(),
            Path::new("/home/u/.config/hvsock/services")
        );
    }

    #[test]
    fn one_folder_holds_everything() {
        let dirs = Dirs::resolve(DirSource::choose(Some("/d".into()), 0), env(&[])).unwrap();
        assert_eq!(dirs.control(), Path::new("/d/control"));
        assert_eq!(dirs.container("web"), Path::new("/d/containers/web"));
        assert_eq!(dirs.vm_socket("web"), Path::new("/d/vm/web.sock"));
        assert_eq!(dirs.partitions(), Path::new("/d/partitions"));
    }

    #[test]
    fn a_missing_variable_is_named() {
        assert_eq!(
            Dirs::resolve(DirSource::User, env(&[])),
            Err("XDG_RUNTIME_DIR")
        );
        let vars = [("XDG_RUNTIME_DIR", "/run/user/7"), ("HOME", "")];
        assert_eq!(Dirs::resolve(DirSource::User, env(&vars)), Err("HOME"));
    }

    #[test]
    fn the_endpoint_of_the_environment_overrides_all_but_the_command_line() {
        let vars = [
            ("HVSOCK_ENDPOINT", "/e"),
            ("HVSOCK_DIR", "/d"),
            ("XDG_RUNTIME_DIR", "/r"),
        ];
        assert_eq!(
            Dirs::endpoint_candidates(None, env(&vars)),
            [Path::new("/e")]
        );
        let given = Some(Path::new("/x"));
        assert_eq!(
            Dirs::endpoint_candidates(given, env(&vars)),
            [Path::new("/x/endpoint")]
        );
        assert_eq!(
            Dirs::endpoint_candidates(None, env(&vars[2..])),
            [
                Path::new("/r/hvsock/endpoint"),
                Path::new("/run/hvsock/endpoint")
            ]
        );
    }
}
