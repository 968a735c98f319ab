//! The programs besides Rust that tests need, as one table, and their installation.
//!
//! A new tool is one entry here. Each test checks for its tool again (`hvsock_testkit::require`), so it skips
//! or fails by the same rule when run by hand.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, anyhow, bail};

use crate::run;

/// A program that some tests need.
struct Tool {
    /// Debian's package.
    package: &'static str,
    /// A command that succeeds if the program is installed.
    probe: &'static [&'static str],
    /// The tests that are skipped without it, in the plural.
    needed_by: &'static str,
}

const TOOLS: &[Tool] = &[
    Tool {
        package: "runc",
        probe: &["runc", "--version"],
        needed_by: "the tests that start OCI containers",
    },
    Tool {
        package: "podman",
        probe: &["podman", "--version"],
        needed_by: "the tests with podman",
    },
    Tool {
        package: "crun",
        probe: &["crun", "--version"],
        needed_by: "the tests with podman",
    },
    Tool {
        package: "python3",
        probe: &["python3", "--version"],
        needed_by: "the tests of the endpoint client in Python",
    },
    Tool {
        package: "python3-build",
        probe: &["/usr/bin/python3", "-c", "import build"],
        needed_by: "the tests of the Python package's wheel",
    },
    Tool {
        package: "python3-wheel",
        probe: &["/usr/bin/python3", "-c", "import setuptools, wheel"],
        needed_by: "the tests of the Python package's wheel",
    },
    Tool {
        package: "mypy",
        probe: &["mypy", "--version"],
        needed_by: "the test of the Python package's types",
    },
    Tool {
        package: "golang-go",
        probe: &["go", "version"],
        needed_by: "the tests of the Go module and of programs in Go",
    },
    Tool {
        package: "golang-github-mdlayher-vsock-dev",
        probe: &[
            "test",
            "-d",
            "/usr/share/gocode/src/github.com/mdlayher/vsock",
        ],
        needed_by: "the tests of a static program in Go",
    },
    Tool {
        package: "nodejs",
        probe: &["node", "--version"],
        needed_by: "the tests of the text protocol's client in Node",
    },
    Tool {
        package: "golang-google-grpc-dev",
        probe: &["test", "-d", "/usr/share/gocode/src/google.golang.org/grpc"],
        needed_by: "the tests of grpc-go",
    },
    Tool {
        package: "curl",
        probe: &["curl", "--version"],
        needed_by: "the tests of the tutorial's page",
    },
    Tool {
        package: "python3-docker",
        probe: &["/usr/bin/python3", "-c", "import docker"],
        needed_by: "the test of docker's clients",
    },
    Tool {
        package: "wine64",
        probe: &["/usr/lib/wine/wine64", "--version"],
        needed_by: "the tests of .reg files against a registry editor",
    },
    Tool {
        package: "qemu-system-x86",
        probe: &["qemu-system-x86_64", "--version"],
        needed_by: "the tests with real guests",
    },
    Tool {
        package: "user-mode-linux",
        probe: &["test", "-x", "/usr/bin/linux.uml"],
        needed_by: "the tests with real guests in User-mode Linux",
    },
    Tool {
        package: "systemd",
        probe: &["test", "-x", "/lib/systemd/systemd"],
        needed_by: "the tests with systemd in a guest",
    },
    Tool {
        package: "busybox-static",
        probe: &["busybox", "true"],
        needed_by: "the tests with real guests",
    },
    Tool {
        package: "socat",
        probe: &["socat", "-V"],
        needed_by: "the tests of programs in real guests",
    },
    Tool {
        package: "ncat",
        probe: &["ncat", "--version"],
        needed_by: "the tests of programs in real guests",
    },
    Tool {
        package: "openssh-server",
        probe: &["test", "-x", "/usr/sbin/sshd"],
        needed_by: "the tests of ssh to guests",
    },
    Tool {
        package: "g++",
        probe: &["g++", "--version"],
        needed_by: "the tests of the C library",
    },
    Tool {
        package: "clang",
        probe: &["clang", "--version"],
        needed_by: "the tests of the C library",
    },
    Tool {
        package: "binutils",
        probe: &["nm", "--version"],
        needed_by: "the tests of the C library",
    },
    Tool {
        package: "valgrind",
        probe: &["valgrind", "--version"],
        needed_by: "the tests of the C library",
    },
    Tool {
        package: "gcc-mingw-w64-x86-64-win32",
        probe: &["x86_64-w64-mingw32-gcc", "--version"],
        needed_by: "the tests of the C library",
    },
    Tool {
        package: "python3-grpcio",
        probe: &["/usr/bin/python3", "-c", "import grpc"],
        needed_by: "the tests of a client in Python",
    },
    Tool {
        package: "protobuf-compiler-grpc",
        probe: &["test", "-x", "/usr/bin/grpc_python_plugin"],
        needed_by: "the tests of a client in Python",
    },
    Tool {
        package: "nbdkit",
        probe: &["nbdkit", "--version"],
        needed_by: "the tests of programs that know vsock",
    },
    Tool {
        package: "libnbd-bin",
        probe: &["nbdcopy", "--version"],
        needed_by: "the tests of programs that know vsock",
    },
    Tool {
        package: "qemu-guest-agent",
        probe: &["qemu-ga", "--version"],
        needed_by: "the tests of programs that know vsock",
    },
    Tool {
        package: "golang-go",
        probe: &["go", "version"],
        needed_by: "the tests of programs in Go",
    },
    Tool {
        package: "golang-github-mdlayher-vsock-dev",
        probe: &[
            "test",
            "-d",
            "/usr/share/gocode/src/github.com/mdlayher/vsock",
        ],
        needed_by: "the tests of programs in Go",
    },
    Tool {
        package: "postgresql-client-15",
        probe: &["psql", "--version"],
        needed_by: "the tests of clients of Unix sockets",
    },
];

/// The tools that only the kernel's vsock suite needs: 150 MB.
const SUITE_TOOLS: &[Tool] = &[
    Tool {
        package: "linux-source-6.12",
        probe: &["test", "-r", LINUX_SOURCE],
        needed_by: "the kernel's vsock_test",
    },
    Tool {
        package: "make",
        probe: &["make", "--version"],
        needed_by: "the kernel's vsock_test",
    },
    Tool {
        package: "xz-utils",
        probe: &["xz", "--version"],
        needed_by: "the kernel's vsock_test",
    },
];

/// The tools of `cargo xtask windows`: a compiler, the standard library's source, a linker and Wine.
const WINDOWS_TOOLS: &[Tool] = &[
    Tool {
        package: "rustc-web",
        probe: &["/usr/bin/rustc", "--version"],
        needed_by: WINDOWS,
    },
    Tool {
        package: "cargo-web",
        probe: &["/usr/bin/cargo", "--version"],
        needed_by: WINDOWS,
    },
    Tool {
        package: "rust-web-clippy",
        probe: &["/usr/bin/clippy-driver", "--version"],
        needed_by: WINDOWS,
    },
    Tool {
        package: "rust-web-src",
        probe: &["test", "-r", "/usr/lib/rustlib/src/rust/library/Cargo.toml"],
        needed_by: WINDOWS,
    },
    Tool {
        package: "gcc-mingw-w64-x86-64-win32",
        probe: &["x86_64-w64-mingw32-gcc", "--version"],
        needed_by: WINDOWS,
    },
    Tool {
        package: "wine64",
        probe: &["/usr/lib/wine/wine64", "--version"],
        needed_by: WINDOWS,
    },
];

const WINDOWS: &str = "the build for Windows and its tests";

/// The package whose installation starts a server. Tests need only its program.
const SERVICE: &str = "openssh-server";

/// Whether its installation would start a server on a developer's machine.
fn starts_services() -> bool {
    Path::new("/run/systemd/system").exists() && !run::in_ci()
}

/// The path at which Debian's package installs the kernel source.
pub const LINUX_SOURCE: &str = "/usr/src/linux-source-6.12.tar.xz";

/// Installs missing tools if this process may; otherwise prints which tests are skipped.
///
/// # Errors
///
/// In CI, if a tool stays missing.
pub fn install_missing() -> Result<()> {
    install(TOOLS).map(drop)
}

/// The same for the kernel's vsock suite.
pub fn install_for_suite() -> Result<()> {
    install(TOOLS)?;
    install(SUITE_TOOLS).map(drop)
}

/// The same for the Windows build. Returns whether all tools are present.
pub fn install_for_windows() -> Result<bool> {
    install(WINDOWS_TOOLS)
}

/// Finds or fetches a kernel for real guests. Outside CI, prints which tests are skipped without one.
pub fn have_guest_kernel() -> Result<()> {
    // The kernel's vsock suite of this version requires it; other tests accept older ones.
    let is_new = |kernel: hvsock_guests::Kernel| kernel.version() >= Some((6, 12));
    if hvsock_guests::Kernel::find().is_ok_and(is_new) {
        return Ok(());
    }
    let fetched = hvsock_guests::Kernel::fetch().or_else(|_| {
        // The package lists may be empty or old.
        if is_root() {
            run::run(&mut apt_get(&["update"]))?;
        }
        Ok(hvsock_guests::Kernel::fetch()?)
    });
    match fetched {
        Ok(kernel) => eprintln!("fetched {}", kernel.image.display()),
        Err(error) if run::in_ci() => return Err(error),
        Err(error) => eprintln!("skipped: the tests with real guests: {error:#}"),
    }
    Ok(())
}

fn install(tools: &[Tool]) -> Result<bool> {
    let missing: Vec<&Tool> = tools.iter().filter(|tool| !works(tool.probe)).collect();
    if missing.is_empty() {
        return Ok(true);
    }
    let may_install = is_root() && works(&["apt-get", "--version"]);
    let updated = if may_install {
        run::run(&mut apt_get(&["update"]))
    } else {
        Err(anyhow!("only root can install it, with apt-get"))
    };
    let mut left_out = false;
    for tool in missing {
        let installed = match &updated {
            Ok(()) if tool.package == SERVICE && starts_services() => Err(anyhow!(
                "installing it would start a server: install it by hand"
            )),
            Ok(()) => run::run(&mut apt_get(&["install", "--yes", tool.package])),
            Err(error) => Err(anyhow!("{error:#}")),
        };
        if works(tool.probe) {
            continue;
        }
        left_out = true;
        let why = installed
            .err()
            .map_or("it does not run".to_owned(), |why| format!("{why:#}"));
        let (package, program) = (tool.package, tool.probe[0]);
        eprintln!(
            "skipped: {}, which need `{program}` of the Debian package {package}: {why}",
            tool.needed_by
        );
    }
    if run::in_ci() && left_out {
        bail!("a tool is missing, and in CI no test may be skipped");
    }
    Ok(!left_out)
}

/// Whether this command runs and succeeds. Its output is discarded.
pub fn works(probe: &[&str]) -> bool {
    let [program, arguments @ ..] = probe else {
        return false;
    };
    // Debian installs runc in sbin, which is not on every user's PATH.
    ["", "/usr/sbin/", "/sbin/"].iter().any(|folder| {
        Command::new(format!("{folder}{program}"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    })
}

/// A note for the plan: how missing tools are installed.
pub fn install_note() -> &'static str {
    if is_root() {
        " with apt-get"
    } else {
        " (not root: their tests are skipped, and each prints why)"
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

fn apt_get(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args([
            "--quiet=2",
            "--no-install-recommends",
            "-o",
            "Acquire::Retries=3",
        ])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        // Progress only; errors are on stderr.
        .stdout(Stdio::null());
    command
}
