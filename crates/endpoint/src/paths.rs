//! The paths of a broker's sockets and configuration, derived from the environment.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The folders of one broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    /// The sockets and the lock. Lost at a reboot.
    pub run: PathBuf,
    /// The registrations and partitions. Persistent.
    pub config: PathBuf,
}

/// The source of a broker's folders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DirSource {
    /// One folder for everything (`--dir`, `HVSOCK_DIR`).
    One(PathBuf),
    /// The system broker, run by root: `/run/hvsock` and `/etc/hvsock`.
    Root,
    /// A user's own broker: `$XDG_RUNTIME_DIR/hvsock` and `~/.config/hvsock`.
    User,
}

impl DirSource {
    /// The given folder, or else the default for the user.
    pub fn choose(dir: Option<PathBuf>, uid: u32) -> Self {
        match dir {
            Some(dir) => Self::One(dir),
            None if uid == 0 => Self::Root,
            None => Self::User,
        }
    }
}

impl Dirs {
    /// Resolves the folders of `source`. Reads `XDG_RUNTIME_DIR`, `XDG_CONFIG_HOME` and `HOME`
    /// through `env`.
    ///
    /// # Errors
    ///
    /// The name of the variable that is missing or empty.
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

    /// The folder of what is known of the containers of runtimes.
    pub fn bindings(&self) -> PathBuf {
        self.run.join("bindings")
    }

    /// The endpoint socket of the broker's own partition.
    pub fn endpoint(&self) -> PathBuf {
        self.run.join("endpoint")
    }

    /// The text protocol's socket for the broker's own partition.
    pub fn text(&self) -> PathBuf {
        self.run.join("text")
    }

    /// The control API's socket.
    pub fn control(&self) -> PathBuf {
        self.run.join("control")
    }

    /// The socket on which container runtimes hand over the listeners of seccomp filters. Only root and the
    /// broker's user can connect.
    pub fn seccomp_agent(&self) -> PathBuf {
        self.run.join("seccomp-agent")
    }

    /// The socket at which the next broker takes the running one over. Only root and the broker's user can connect.
    pub fn handover(&self) -> PathBuf {
        self.run.join("handover")
    }

    /// The lock file that the running broker holds. It contains the process id.
    pub fn lock(&self) -> PathBuf {
        self.run.join("lock")
    }

    /// The parent of the containers' folders. Other users cannot access it.
    pub fn containers(&self) -> PathBuf {
        self.run.join("containers")
    }

    /// The folder to mount into a container as `/run/hvsock`.
    pub fn container(&self, name: &str) -> PathBuf {
        self.containers().join(name)
    }

    /// The records of whose the containers' folders are.
    pub fn container_ids(&self) -> PathBuf {
        self.run.join("container-ids")
    }

    /// The folder in which the broker makes sockets that have no name. Other users cannot access it.
    pub fn attached(&self) -> PathBuf {
        self.run.join("attached")
    }

    /// The folder of the VMs' sockets. Each is accessible to the user that its VMM runs as.
    pub fn vms(&self) -> PathBuf {
        self.run.join("vm")
    }

    /// The socket to which the VMM of a VM connects its vhost-user-vsock device.
    pub fn vm_socket(&self, name: &str) -> PathBuf {
        self.vms().join(format!("{name}.sock"))
    }

    /// The socket by which programs on the host reach a VM's guest by hybrid vsock.
    pub fn vm_hybrid_socket(&self, name: &str) -> PathBuf {
        self.vms().join(format!("{name}.vsock"))
    }

    /// The folder of the registrations.
    pub fn services(&self) -> PathBuf {
        self.config.join("services")
    }

    /// The file of the defaults for settings that a registration leaves out.
    pub fn defaults(&self) -> PathBuf {
        self.config.join("defaults.toml")
    }

    /// The folder of the partitions.
    pub fn partitions(&self) -> PathBuf {
        self.config.join("partitions")
    }

    /// The default folder of the containers' CDI devices: beside the configuration, where engines look
    /// (`/etc/cdi` for root, `~/.config/cdi` for a user), or in the one folder for everything.
    pub fn cdi(&self) -> PathBuf {
        match self.config == self.run {
            true => self.run.join("cdi"),
            false => self.config.with_file_name("cdi"),
        }
    }

    /// The endpoints that a client tries, in order. The first of these rules that applies decides:
    ///
    /// 1. `dir` (`--dir`) is given: its endpoint only.
    /// 2. `HVSOCK_ENDPOINT` is set: this path only.
    /// 3. `HVSOCK_DIR` is set: the endpoint of this folder only.
    /// 4. The endpoint of the user's broker, then that of the system broker. In a container the
    ///    latter is the container's endpoint.
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
        assert_eq!(dirs.cdi(), Path::new("/d/cdi"));
    }

    #[test]
    fn the_folder_of_cdi_devices_is_the_one_where_engines_look() {
        let cdi = |source, vars: &[(&str, &str)]| Dirs::resolve(source, env(vars)).unwrap().cdi();
        assert_eq!(cdi(DirSource::Root, &[]), Path::new("/etc/cdi"));
        let mut vars = vec![("XDG_RUNTIME_DIR", "/run/user/7"), ("HOME", "/home/u")];
        assert_eq!(
            cdi(DirSource::User, &vars),
            Path::new("/home/u/.config/cdi")
        );
        vars.push(("XDG_CONFIG_HOME", "/c"));
        assert_eq!(cdi(DirSource::User, &vars), Path::new("/c/cdi"));
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
    fn the_environment_overrides_the_default_endpoints_and_the_command_line_overrides_both() {
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
