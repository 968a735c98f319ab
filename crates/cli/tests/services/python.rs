//! A foreign client: Google's gRPC for Python, which does not know hvsock, uses a service of a guest through
//! a forwarded Unix socket.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use hvsock_testkit::{TempFolder, require};

use crate::fixture::{BOX, Fixture};
use crate::forward::Forward;
use crate::util::{Completed, Running};

/// Debian's interpreter, because Debian's package of the library is for it.
const PYTHON: &str = "/usr/bin/python3";

/// The client, with the modules that protoc generates from the interface.
struct Client {
    modules: TempFolder,
    socket: PathBuf,
}

impl Client {
    /// Skips the test (`None`) without the library or protoc.
    fn new(socket: PathBuf) -> Option<Self> {
        let import = Completed::of(Command::new(PYTHON).args(["-c", "import grpc"]));
        let import = (import.code == Some(0)).then_some(());
        require::found(import.ok_or("python3-grpcio is not installed"))?;
        let protoc = require::program("protoc", &["--version"])?;
        let modules = TempFolder::new();
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../services/proto/hvsock");
        let mut command = Command::new(protoc);
        command.arg("-I").arg(root);
        for option in ["--python_out", "--grpc_python_out"] {
            command.arg(format!("{option}={}", modules.path().display()));
        }
        command.arg("--plugin=protoc-gen-grpc_python=/usr/bin/grpc_python_plugin");
        Completed::of(command.arg("kvp.proto")).ok();
        Some(Self { modules, socket })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/python");
        let mut command = Command::new(PYTHON);
        command
            .arg(format!("{root}/kvp_client.py"))
            .arg(&self.socket)
            .args(arguments)
            .env("PYTHONPATH", self.modules.path())
            .env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    fn run(&self, arguments: &[&str]) -> Completed {
        Completed::of(&mut self.command(arguments))
    }
}

#[test]
fn a_client_in_python_exchanges_data_with_a_guest() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let socket = fixture.world.dir().join("kvp.sock");
    let Some(client) = Client::new(socket.clone()) else {
        return;
    };
    let here = format!("unix:{}", socket.display());
    let _forward = Forward::start(&fixture, &[&here, &format!("{BOX}:service:hvsock kvp")]);

    let facts = client.run(&["list", "auto"]).ok();
    let os = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(facts.contains(os.trim()), "{facts}");

    // The command reads the value that the client sets, and the client the value that the command sets.
    let watching = &mut client.command(&["watch", "external", "Greeting"]);
    let mut watching = Running::start(watching.stdout(Stdio::piped()));
    assert_eq!(watching.line(), "KIND_SNAPSHOT_END");
    client
        .run(&["set", "external", "Greeting", "from Python"])
        .ok();
    assert_eq!(watching.line(), "KIND_SET from Python");
    let seen = fixture
        .world
        .ok(["kvp", "get", BOX, "Greeting", "--pool", "external"]);
    assert_eq!(seen, "from Python\n");
    fixture.world.ok(["kvp", "set", BOX, "Greeting", "last"]);
    assert_eq!(watching.line(), "KIND_SET last");
    assert!(watching.end().success());
    let seen = client.run(&["get", "external", "Greeting"]).ok();
    assert_eq!(seen, "last\n");

    let missing = client.run(&["get", "external", "Nothing"]);
    assert!(missing.stderr.starts_with("NOT_FOUND: "), "{missing:?}");
    let denied = client.run(&["set", "guest", "Greeting", "x"]);
    assert!(
        denied.stderr.starts_with("PERMISSION_DENIED: "),
        "{denied:?}"
    );
}
