//! The addresses and options that Microsoft's documents name.

use std::path::{Path, PathBuf};
use std::process::Command;

use hvsock_testkit::require;

use super::world::{BOTH, Emulated, file};
use crate::util::{self, Completed};

/// One C program, compiled into this folder. `None` skips the test.
fn program(folder: &Path) -> Option<PathBuf> {
    let compiler = require::program("cc", &["--version"])?;
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("../capi/include");
    let program = folder.join("well_known");
    let mut compile = Command::new(compiler);
    compile.arg("-I").arg(include).arg("-o").arg(&program);
    Completed::of(compile.arg(file("well_known.c"))).ok();
    Some(program)
}

/// What the options answer: a value that is too short is none, and more is ignored.
const OPTIONS: &str = "\
CONNECT_TIMEOUT: EINVAL EINVAL ok ok ok
CONTAINER_PASSTHRU: EINVAL EINVAL ok ok ok
CONNECTED_SUSPEND: EINVAL EINVAL ok ok ok
HIGH_VTL: EINVAL EINVAL ok ok ok
timeout 300000: ok, is 300000
timeout 300001: EINVAL, is 300000
";

/// On a host outside of virtual machines: it has no parent.
const ON_A_HOST: &str = "\
bind WILDCARD: ok, listen: ok, connect: ok
bind CHILDREN: ok, listen: ok, connect: ECONNREFUSED
bind PARENT: ok, listen: EOPNOTSUPP
bind LOOPBACK: ok, listen: ok, connect: ok
bind SILOHOST: ok, listen: EADDRNOTAVAIL
bind BROADCAST: ok, listen: EADDRNOTAVAIL
connect WILDCARD: EADDRNOTAVAIL
connect CHILDREN: EADDRNOTAVAIL
connect PARENT: EOPNOTSUPP
connect LOOPBACK: ok, echo: ok
connect SILOHOST: EADDRNOTAVAIL
connect BROADCAST: EADDRNOTAVAIL
";

/// In a container: its parent and its silo host are the host, to which a connect to the wildcard goes, too, and it has no
/// children.
const IN_A_CONTAINER: &str = "\
bind WILDCARD: ok, listen: ok, connect: ok
bind CHILDREN: ok, listen: EOPNOTSUPP
bind PARENT: ok, listen: ok, connect: ECONNREFUSED
bind LOOPBACK: ok, listen: ok, connect: ok
bind SILOHOST: ok, listen: ok, connect: ECONNREFUSED
bind BROADCAST: ok, listen: EADDRNOTAVAIL
connect WILDCARD: ok, echo: ok
connect CHILDREN: EADDRNOTAVAIL
connect PARENT: ok, echo: ok
connect LOOPBACK: ECONNREFUSED
connect SILOHOST: ok, echo: ok
connect BROADCAST: EADDRNOTAVAIL
";

#[test]
fn well_known_addresses_and_options_answer_as_the_documents_say_by_both_ways() {
    let folder = util::folder();
    let (Some(emulated), Some(program)) = (Emulated::new(), program(folder.path())) else {
        return;
    };
    let world = &emulated.world;
    let container = world.container("box");
    for (name, port) in [
        ("Echo", 7100),
        ("Any", 7200),
        ("Down", 7201),
        ("Up", 7202),
        ("Silo", 7204),
    ] {
        world.ok(["service", "register", name, "--port", &port.to_string()]);
    }
    let _echo = world.listen(["Echo", "--keep", "--", "cat"]);
    for way in BOTH {
        let arguments = ["run", "-q", way.flag(), "--"];
        let on_the_host = world.command(arguments);
        let in_the_container = util::in_container(&container, arguments);
        for (mut command, expected) in
            [(on_the_host, ON_A_HOST), (in_the_container, IN_A_CONTAINER)]
        {
            command.env("HVSOCK_PRELOAD_LIB", &emulated.library);
            let done = Completed::of(command.arg(&program));
            assert_eq!(done.ok(), format!("{expected}{OPTIONS}"), "{way:?}");
        }
    }
}
