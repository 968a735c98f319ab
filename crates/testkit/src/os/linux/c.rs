//! The documents' server and client in C (`examples/c`), as programs of this machine.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::UNIX_EPOCH;

use crate::require;

/// Whose calls of Windows Sockets the programs make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// Those of libhvsock, which is linked statically: the programs use a broker by themselves.
    Library,
    /// Those of the C library: the programs ask the kernel for `AF_HYPERV`, and know nothing of hvsock.
    Kernel,
}

/// The programs. `server [CONNECTIONS [PORT]]` prints `listening` and sends back what it receives; `client [TEXT|-
/// [parent|loopback|GUID [PORT]]]` sends the text, or its standard input, and prints what comes back and a newline.
#[derive(Clone, Debug)]
pub struct Examples {
    /// The path of the server.
    pub server: PathBuf,
    /// The path of the client.
    pub client: PathBuf,
}

/// Builds the programs in `folder`. `None` without a C compiler, or without the static library: that is built for the
/// tests of a package which depends on `hvsock-capi`.
///
/// # Panics
///
/// If a program does not build.
pub fn examples(calls: Calls, folder: &Path) -> Option<Examples> {
    let compiler = require::program("cc", &["--version"])?;
    let archive = match calls {
        Calls::Library => Some(require::found(library())?),
        Calls::Kernel => None,
    };
    let build = |name: &str| {
        let program = folder.join(name);
        let mut command = Command::new(&compiler);
        command
            .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-I"])
            .arg(root().join("crates/capi/include"))
            .arg(root().join("examples/c").join(name).with_extension("c"));
        match &archive {
            Some(archive) => command.arg(archive).args(SYSTEM_LIBRARIES),
            None => command.arg(root().join("crates/testkit/programs/winsock_calls.c")),
        };
        let output = command.arg("-o").arg(&program).stdin(Stdio::null());
        let output = output.output().expect("the compiler starts");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {text}");
        program
    };
    Some(Examples {
        server: build("server"),
        client: build("client"),
    })
}

/// As [`examples`], but built once for all test processes, beside their own programs: linking takes seconds.
///
/// # Panics
///
/// If a program does not build.
pub fn shared_examples(calls: Calls) -> Option<Examples> {
    let of_root = [
        "crates/capi/include/hvsocket.h",
        "crates/capi/include/winsock2.h",
        "crates/testkit/programs/winsock_calls.c",
        "examples/c/client.c",
        "examples/c/server.c",
    ];
    let mut sources = of_root.map(|path| root().join(path)).to_vec();
    if calls == Calls::Library {
        sources.push(require::found(library())?);
    }
    let times = sources.iter().map(|path| fs::metadata(path)?.modified());
    let times = times.collect::<io::Result<Vec<_>>>().expect("the sources");
    let newest = times.into_iter().max().unwrap_or(UNIX_EPOCH);
    let age = newest.duration_since(UNIX_EPOCH).unwrap_or_default();
    let test = std::env::current_exe().expect("the path of this program");
    let folder = format!("c-examples-{calls:?}-{}", age.as_nanos());
    let folder = test.with_file_name(folder);
    fs::create_dir_all(&folder).expect("a folder for programs");
    let lock = fs::File::create(folder.join("lock")).expect("a file");
    lock.lock().expect("a lock");
    let built = Examples {
        server: folder.join("server"),
        client: folder.join("client"),
    };
    // One that was stopped has not written this.
    let mark = folder.join("built");
    if !mark.exists() {
        examples(calls, &folder)?;
        fs::write(mark, "").expect("a file");
    }
    Some(built)
}

/// What the Rust standard library needs of the system.
pub const SYSTEM_LIBRARIES: [&str; 6] = ["-lutil", "-lrt", "-lpthread", "-lm", "-ldl", "-lc"];

/// The static library that cargo built last for a test, which is in the folder of the dependencies only.
///
/// # Errors
///
/// If there is none.
pub fn library() -> Result<PathBuf, String> {
    let test = std::env::current_exe().map_err(|error| error.to_string())?;
    // target/PROFILE/deps/TEST, and that of an example beside it.
    let folder = test.ancestors().nth(2).map(|folder| folder.join("deps"));
    let files = folder.and_then(|folder| fs::read_dir(folder).ok());
    let archives = files.into_iter().flatten().flatten().filter(|file| {
        let name = file.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libhvsock_capi") && name.ends_with(".a")
    });
    let newest = archives.max_by_key(|file| file.metadata().and_then(|it| it.modified()).ok());
    let missing = "the static C library is not built (`cargo test -p hvsock-capi --no-run`)";
    Ok(newest.ok_or(missing)?.path())
}

/// The folder of the workspace.
fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).unwrap_or(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TempFolder;

    #[test]
    fn the_documents_programs_ask_the_kernel_for_hyperv_sockets_without_the_library() {
        let folder = TempFolder::new();
        let Some(examples) = examples(Calls::Kernel, folder.path()) else {
            return;
        };
        // AF_HYPERV is no family of Linux, and nobody else gives them one here.
        for program in [examples.server, examples.client] {
            let output = Command::new(&program).output().expect("it starts");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(errors.contains("socket failed: "), "{errors}");
        }
    }
}
