//! How a process reaches its broker.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use hvsock_endpoint::Dirs;
use hvsock_sys::owner;

/// How to reach the broker: paths of endpoint sockets, tried in order, or the kernel's `AF_VSOCK`
/// instead of a broker ([in a virtual machine](crate#in-a-virtual-machine)).
///
/// Functions without an endpoint argument use [`Endpoint::from_env`].
///
/// ```
/// use hvsock::Endpoint;
///
/// let endpoint = Endpoint::in_dir("/tmp/demo");
/// assert!(endpoint.paths()[0].ends_with("demo/endpoint"));
/// ```
#[doc(alias = "HVSOCK_ENDPOINT")]
#[doc(alias = "HVSOCK_DIR")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    paths: Vec<PathBuf>,
    vsock: UseVsock,
}

/// When the kernel's `AF_VSOCK` replaces a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UseVsock {
    Never,
    /// If no endpoint socket exists and this machine is a virtual one.
    WithoutBroker,
    Always,
}

/// The value of `HVSOCK_ENDPOINT` that selects `AF_VSOCK` instead of a socket path.
const VSOCK: &str = "vsock";

impl Endpoint {
    /// Returns the endpoint that the environment selects:
    ///
    /// 1. the socket that `HVSOCK_ENDPOINT` names;
    /// 2. else the socket `endpoint` in the folder that `HVSOCK_DIR` names;
    /// 3. else the socket of the user's broker (`$XDG_RUNTIME_DIR/hvsock/endpoint`) if that is
    ///    running, and then the one of the machine (`/run/hvsock/endpoint`). In a container the
    ///    second path is the endpoint of the container.
    ///
    /// A runtime folder of another user, as `sudo -E` and `su` pass it on, is ignored: that user's
    /// broker, with that user's partitions and rules, is not this one's.
    ///
    /// If neither variable is set and none of these sockets exists, a virtual machine with
    /// `/dev/vsock` uses `AF_VSOCK`. `HVSOCK_ENDPOINT=vsock` always selects `AF_VSOCK`; for a
    /// socket of that name write `./vsock`.
    pub fn from_env() -> Self {
        Self::from_vars(|name| {
            let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
            let is_runtime_dir = name == "XDG_RUNTIME_DIR";
            let is_foreign = is_runtime_dir && foreign_broker(Path::new(&value)).is_some();
            (!is_foreign).then_some(value)
        })
    }

    fn from_vars(env: impl Fn(&str) -> Option<OsString>) -> Self {
        let endpoint = env("HVSOCK_ENDPOINT");
        if endpoint.as_deref() == Some(VSOCK.as_ref()) {
            return Self::of_vsock();
        }
        let vsock = match endpoint.or_else(|| env("HVSOCK_DIR")) {
            Some(_) => UseVsock::Never,
            None => UseVsock::WithoutBroker,
        };
        let paths = Dirs::endpoint_candidates(None, env);
        Self { paths, vsock }
    }

    /// Returns the endpoint that uses the kernel's `AF_VSOCK` and no broker, for [virtual
    /// machines](crate#in-a-virtual-machine).
    ///
    /// ```no_run
    /// use hvsock::{Endpoint, HvStream};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let options = HvStream::options().endpoint(Endpoint::of_vsock());
    /// let stream = options.connect(("parent", 2761))?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "AF_VSOCK")]
    #[doc(alias = "/dev/vsock")]
    pub fn of_vsock() -> Self {
        let vsock = UseVsock::Always;
        Self {
            paths: Vec::new(),
            vsock,
        }
    }

    /// Returns the endpoint with the socket at `path` only.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            paths: vec![path.into()],
            vsock: UseVsock::Never,
        }
    }

    /// Returns the endpoint of the broker that was started with `--dir DIR`.
    pub fn in_dir(dir: impl AsRef<Path>) -> Self {
        Self::at(dir.as_ref().join("endpoint"))
    }

    /// Returns the socket paths, in the order in which they are tried.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// An endpoint with several paths.
    #[cfg(all(test, target_os = "linux"))]
    pub(crate) fn with_paths(paths: Vec<PathBuf>) -> Self {
        Self {
            paths,
            vsock: UseVsock::Never,
        }
    }

    pub(crate) fn vsock(&self) -> UseVsock {
        self.vsock
    }
}

/// The user id of another user to whom the broker in a runtime folder would belong. `None` if the folder is
/// this user's own.
pub(crate) fn foreign_broker(runtime_dir: &Path) -> Option<u32> {
    // The folder may be one in which every user may create others, as `/tmp`.
    owner::other_owner(runtime_dir).or_else(|| owner::other_owner(&runtime_dir.join("hvsock")))
}

impl From<&str> for Endpoint {
    /// [`Endpoint::at`].
    fn from(path: &str) -> Self {
        Self::at(path)
    }
}

impl From<&Path> for Endpoint {
    /// [`Endpoint::at`].
    fn from(path: &Path) -> Self {
        Self::at(path)
    }
}

impl From<PathBuf> for Endpoint {
    /// [`Endpoint::at`].
    fn from(path: PathBuf) -> Self {
        Self::at(path)
    }
}

impl From<&Endpoint> for Endpoint {
    fn from(endpoint: &Endpoint) -> Self {
        endpoint.clone()
    }
}

impl Default for Endpoint {
    /// [`Endpoint::from_env`].
    fn default() -> Self {
        Self::from_env()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients in other languages run the same vectors. Their paths are those of Unix.
    #[cfg(unix)]
    #[test]
    fn the_environment_selects_the_endpoints_of_the_test_vectors() {
        let file = include_str!("../../../docs/vectors/endpoints.json");
        let file: serde_json::Value = serde_json::from_str(file).expect("JSON");
        let rows = file["endpoints"].as_array().expect("rows");
        assert!(rows.len() >= 9);
        for row in rows {
            let endpoint = Endpoint::from_vars(|name| {
                let value = row["env"][name].as_str()?;
                (!value.is_empty()).then(|| value.into())
            });
            let paths: Vec<_> = endpoint.paths().iter().map(|path| path.to_str()).collect();
            let want = row["paths"].as_array().expect("paths");
            let want: Vec<_> = want.iter().map(|path| path.as_str()).collect();
            assert_eq!(paths, want, "{row}");
            let vsock = match endpoint.vsock() {
                UseVsock::Never => "never",
                UseVsock::WithoutBroker => "without_broker",
                UseVsock::Always => "always",
            };
            assert_eq!(row["vsock"], vsock, "{row}");
        }
    }

    #[test]
    fn vsock_replaces_a_broker_only_if_none_is_named() {
        let of = |vars: &[(&str, &str)]| {
            Endpoint::from_vars(|name| {
                let found = vars.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| value.into())
            })
        };
        assert_eq!(of(&[]).vsock, UseVsock::WithoutBroker);
        assert_eq!(
            of(&[("XDG_RUNTIME_DIR", "/r")]).vsock,
            UseVsock::WithoutBroker
        );
        assert_eq!(of(&[("HVSOCK_DIR", "/d")]).vsock, UseVsock::Never);
        assert_eq!(of(&[("HVSOCK_ENDPOINT", "/e")]), Endpoint::at("/e"));
        assert_eq!(
            of(&[("HVSOCK_ENDPOINT", "./vsock")]),
            Endpoint::at("./vsock")
        );
        let vsock = [("HVSOCK_ENDPOINT", "vsock"), ("HVSOCK_DIR", "/d")];
        assert_eq!(of(&vsock), Endpoint::of_vsock());
        assert_eq!(of(&vsock).paths(), &[] as &[PathBuf]);
    }
}
