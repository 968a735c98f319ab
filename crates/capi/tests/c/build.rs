//! The library, as `cargo xtask capi` links it, and programs that are linked with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::UNIX_EPOCH;

use hvsock_testkit::require;
use tempfile::TempDir;

/// A folder with the shared library and the headers.
pub struct Library {
    folder: PathBuf,
    programs: TempDir,
}

/// The library of this test program.
pub static LIBRARY: LazyLock<Library> = LazyLock::new(Library::link);

/// The folder of this crate.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder of the programs in C.
pub fn sources() -> PathBuf {
    root().join("tests/c/programs")
}

/// The folder of the examples in C.
pub fn examples() -> PathBuf {
    root().join("../../examples/c")
}

/// Runs a command, which must succeed.
pub fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{text}",
        output.status
    );
    output
}

impl Library {
    /// Links the library, once for all test processes.
    fn link() -> Self {
        let archive = hvsock_testkit::c::library().expect("built with this program");
        let newest = [
            archive.clone(),
            root().join("cbindgen.toml"),
            root().join("link.args"),
        ];
        let newest = newest.map(|path| {
            fs::metadata(path)
                .and_then(|it| it.modified())
                .expect("a file")
        });
        let newest = newest
            .iter()
            .max()
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let stem = format!("library-{}", newest.unwrap_or_default().as_nanos());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(stem);
        fs::create_dir_all(&folder).expect("a folder");
        let lock = fs::File::create(folder.join("lock")).expect("a file");
        lock.lock().expect("a lock");
        let library = Self {
            programs: TempDir::new().expect("a folder"),
            folder,
        };
        if !library.folder.join("hvsock.h").exists() {
            library.build(&archive);
        }
        library
    }

    fn build(&self, archive: &Path) {
        let shared = self.folder.join("libhvsock.so.1");
        run(Command::new("cc")
            .current_dir(root())
            .arg("@link.args")
            .arg("-Wl,--whole-archive")
            .arg(archive)
            .arg("-Wl,--no-whole-archive")
            .args(hvsock_testkit::c::SYSTEM_LIBRARIES)
            .arg("-o")
            .arg(&shared));
        // A run that was killed may have left them.
        for (file, link) in [(shared.as_path(), "libhvsock.so"), (archive, "libhvsock.a")] {
            let link = self.folder.join(link);
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(file, link).expect("a link");
        }
        let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).expect("valid");
        let builder = cbindgen::Builder::new().with_crate(root());
        let header = builder.with_config(config).generate().expect("a header");
        header.write_to_file(self.folder.join("hvsock.h"));
    }

    /// A folder for the programs of this test.
    pub fn programs(&self) -> &Path {
        self.programs.path()
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A compiler with the headers and all warnings as errors.
    pub fn compiler(&self, compiler: &Compiler) -> Command {
        let mut command = Command::new(compiler.program);
        command
            .args(compiler.flags)
            .args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-I"])
            .arg(root().join("include"))
            .arg("-I")
            .arg(self.folder());
        command
    }

    /// Compiles a program and returns its path.
    pub fn program(&self, compiler: &Compiler, source: &Path, flags: &[&str]) -> PathBuf {
        let stem = source.file_stem().unwrap_or_default().to_string_lossy();
        let name = format!("{stem}-{}-{}", compiler.name, std::process::id());
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let program = self.programs().join(format!("{name}-{number}"));
        run(self
            .compiler(compiler)
            .args(flags)
            .args(["-x", compiler.language])
            .arg(source)
            .args(["-x", "none"])
            .arg("-L")
            .arg(self.folder())
            .arg(format!("-Wl,-rpath,{}", self.folder().display()))
            .args(["-lhvsock", "-pthread", "-o"])
            .arg(&program));
        program
    }
}

static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

/// A compiler and a language.
pub struct Compiler {
    pub name: &'static str,
    pub program: &'static str,
    pub language: &'static str,
    pub flags: &'static [&'static str],
}

pub const GCC: Compiler = Compiler {
    name: "gcc",
    program: "gcc",
    language: "c",
    flags: &["-std=c11"],
};

pub const GXX: Compiler = Compiler {
    name: "gxx",
    program: "g++",
    language: "c++",
    flags: &["-std=c++17"],
};

pub const CLANG: Compiler = Compiler {
    name: "clang",
    program: "clang",
    language: "c",
    flags: &["-std=c11"],
};

pub const CLANGXX: Compiler = Compiler {
    name: "clangxx",
    program: "clang++",
    language: "c++",
    flags: &["-std=c++17"],
};

/// The compilers that are installed.
pub fn compilers() -> Vec<Compiler> {
    let all = [GCC, GXX, CLANG, CLANGXX];
    all.into_iter()
        .filter(|it| require::program(it.program, &["--version"]).is_some())
        .collect()
}
