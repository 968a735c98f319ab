//! Programs that use `AF_VSOCK` and know nothing of hvsock: how each is started as a client and as a server, and
//! how to see that it works. The table of docs/programs.md is tests of these.
//!
//! An [`Echo`](Kind::Echo) program has a client that sends its standard input and writes what comes back to its
//! standard output, and a server that returns what it gets.

mod scripts;

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{c, go};
use crate::require;

/// A program that is installed here.
#[derive(Debug, Clone)]
pub struct Program {
    /// Its name in the table.
    pub name: &'static str,
    /// What it is used for.
    pub kind: Kind,
    /// The executable files of it.
    files: Vec<PathBuf>,
}

/// What a program is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Its client and its server are the ends of an echo.
    Echo,
    /// As [`Echo`](Self::Echo), but the client sends all before it receives, at most 64 KiB, and prints a newline
    /// after what came back.
    Text,
    /// A network block device: the server has a disk, which the client copies.
    Disk,
    /// The server answers lines of JSON. There is no client.
    Agent,
}

/// The names of all programs, in the order of the table.
pub const NAMES: &[&str] = &[
    "socat",
    "ncat",
    "python-blocking",
    "python-timeout",
    "python-asyncio",
    "go-mdlayher-vsock",
    "vsock-crate",
    "tokio-vsock-crate",
    "nbdkit",
    "qemu-ga",
    "c-example",
    "c-example-libhvsock",
];

/// The path of Debian's Python.
pub const PYTHON: &str = "/usr/bin/python3";

/// Whom a client connects to.
#[derive(Debug, Clone)]
pub enum Peer {
    /// Its own partition.
    Own,
    /// The host of its partition.
    Parent,
    /// A virtual machine or container.
    Other {
        /// Its context id.
        cid: u32,
        /// Its GUID.
        id: String,
    },
}

impl Peer {
    /// The context id for `AF_VSOCK`.
    fn cid(&self) -> u32 {
        match self {
            Self::Own => 1,
            Self::Parent => 2,
            Self::Other { cid, .. } => *cid,
        }
    }

    /// The name of the partition for the examples in C.
    fn partition(&self) -> &str {
        match self {
            Self::Own => "loopback",
            Self::Parent => "parent",
            Self::Other { id, .. } => id,
        }
    }
}

impl Program {
    /// Finds the program of this name, and builds it where it must be. Skips (`None`) if it is not installed.
    ///
    /// `package` is the package of the test, whose examples `vsock_echo` and `tokio_vsock_echo` are two of the programs.
    ///
    /// # Panics
    ///
    /// If there is no such program in [`NAMES`], or it cannot be built.
    pub fn find(name: &str, package: &str) -> Option<Self> {
        let name = NAMES.iter().find(|known| **known == name);
        let name = *name.expect("a program of the table");
        let (kind, files) = match name {
            "socat" => (Kind::Echo, vec![require::program("socat", &["-V"])?]),
            "ncat" => (Kind::Echo, vec![require::program("ncat", &["--version"])?]),
            "go-mdlayher-vsock" => (Kind::Echo, vec![go::vsock_program(&build_folder())?]),
            "vsock-crate" => (Kind::Echo, vec![require::example(package, "vsock_echo")?]),
            "tokio-vsock-crate" => (
                Kind::Echo,
                vec![require::example(package, "tokio_vsock_echo")?],
            ),
            "nbdkit" => {
                let server = require::program("nbdkit", &["--version"])?;
                let client = require::program("nbdcopy", &["--version"])?;
                (Kind::Disk, vec![server, client])
            }
            "qemu-ga" => (
                Kind::Agent,
                vec![require::program("qemu-ga", &["--version"])?],
            ),
            "c-example" => c_example(c::Calls::Kernel)?,
            "c-example-libhvsock" => c_example(c::Calls::Library)?,
            // Debian's, which every user can run.
            _ => (Kind::Echo, vec![require::program(PYTHON, &["--version"])?]),
        };
        Some(Self { name, kind, files })
    }

    /// Whether it is linked statically, so that it loads no library.
    pub fn is_static(&self) -> bool {
        self.name == "go-mdlayher-vsock"
    }

    /// The folders of its executable files, which a container must have.
    pub fn folders(&self) -> Vec<&Path> {
        let mut folders: Vec<_> = self.files.iter().filter_map(|file| file.parent()).collect();
        folders.sort_unstable();
        folders.dedup();
        folders
    }

    /// The script of a program in Python.
    fn script(&self) -> Option<(&'static str, &'static str)> {
        match self.name {
            "python-blocking" => Some((scripts::BLOCKING_CLIENT, scripts::BLOCKING_SERVER)),
            "python-timeout" => Some((scripts::TIMEOUT_CLIENT, scripts::TIMEOUT_SERVER)),
            "python-asyncio" => Some((scripts::ASYNCIO_CLIENT, scripts::ASYNCIO_SERVER)),
            _ => None,
        }
    }

    /// The words of its client, which connects to a port of a partition. A [`Kind::Disk`] copies it to `file`.
    pub fn client(&self, peer: &Peer, port: u32, file: &Path) -> Vec<String> {
        let program = text(self.files.last().expect("at least one file"));
        let (cid, port) = (peer.cid().to_string(), port.to_string());
        if let Some((client, _)) = self.script() {
            return words(&[&program, "-S", "-E", "-c", client, &cid, &port]);
        }
        match self.name {
            // With -t it waits for the other direction after the end of its input.
            "socat" => words(&[
                &program,
                "-t",
                "60",
                "-",
                &format!("VSOCK-CONNECT:{cid}:{port}"),
            ]),
            "ncat" => words(&[&program, "--vsock", &cid, &port]),
            "nbdkit" => words(&[&program, &format!("nbd+vsock://{cid}:{port}/"), &text(file)]),
            "go-mdlayher-vsock" => words(&[&program, "connect", &cid, &port]),
            "c-example" | "c-example-libhvsock" => words(&[&program, "-", peer.partition(), &port]),
            _ => words(&[&program, "client", &cid, &port]),
        }
    }

    /// The words of its server, which listens at a port of every context id. A [`Kind::Disk`] serves `file`. A
    /// [`Kind::Agent`] keeps its state in the folder of `file`.
    pub fn server(&self, port: u32, file: &Path) -> Vec<String> {
        let program = text(self.files.first().expect("at least one file"));
        let port = port.to_string();
        if let Some((_, server)) = self.script() {
            return words(&[&program, "-S", "-E", "-c", server, &port]);
        }
        match self.name {
            "socat" => words(&[
                &program,
                "-t",
                "60",
                &format!("VSOCK-LISTEN:{port},fork"),
                "EXEC:cat",
            ]),
            "ncat" => words(&[&program, "--vsock", "-l", "-k", "-e", "/bin/cat", &port]),
            "nbdkit" => words(&[
                &program,
                "-f",
                "--vsock",
                "--port",
                &port,
                "file",
                &text(file),
            ]),
            "qemu-ga" => {
                let folder = text(file.parent().expect("a file in a folder"));
                let pid = format!("{folder}/qga.pid");
                let path = format!("4294967295:{port}");
                words(&[
                    &program,
                    "-m",
                    "vsock-listen",
                    "-p",
                    &path,
                    "-t",
                    &folder,
                    "-f",
                    &pid,
                ])
            }
            "go-mdlayher-vsock" => words(&[&program, "listen", &port]),
            "c-example" | "c-example-libhvsock" => words(&[&program, "1000000", &port]),
            _ => words(&[&program, "server", &port]),
        }
    }
}

/// The documents' server and client in C.
fn c_example(calls: c::Calls) -> Option<(Kind, Vec<PathBuf>)> {
    let built = c::shared_examples(calls)?;
    Some((Kind::Text, vec![built.server, built.client]))
}

/// A folder of this process beside its own program, which other users can read.
fn build_folder() -> PathBuf {
    let test = std::env::current_exe().expect("the path of this program");
    let folder = test.with_extension(format!("{}.programs", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for programs");
    folder
}

/// The words as a command.
///
/// # Panics
///
/// If there are none.
pub fn command(words: &[String]) -> Command {
    let (program, arguments) = words.split_first().expect("a program");
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}
