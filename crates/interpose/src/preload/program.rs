//! Whether a program loads the library.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hvsock_sys::secure_exec;

use super::elf::{Elf, Loader};

/// Why a program would run without the library.
#[derive(Debug, thiserror::Error)]
pub enum Unsuitable {
    /// It is linked statically, as most programs in Go are.
    #[error("{} is linked statically, so it loads no library", .0.display())]
    Static(PathBuf),
    /// It gets other rights when it starts, so the loader ignores the library.
    #[error("{} gets the rights of another user or group, so the loader ignores preloaded libraries", .0.display())]
    GainsRights(PathBuf),
    /// Its addresses have 32 bits, on a system with 64.
    #[error("{} is a 32-bit program, whose calls are not seen", .0.display())]
    Narrow(PathBuf),
    /// It is for another processor than the library.
    #[error("{} is for another kind of processor than the library", .0.display())]
    OtherProcessor(PathBuf),
    /// It is linked against musl, and the library against the GNU C library.
    #[error("{} is linked against musl ({loader}), and the library against the GNU C library", .program.display())]
    OfMusl {
        /// The program.
        program: PathBuf,
        /// The program's loader.
        loader: String,
    },
    /// It is linked against another C library than musl, and the library against musl.
    #[error("the library is linked against musl, and {} is not ({loader})", .program.display())]
    NotOfMusl {
        /// The program.
        program: PathBuf,
        /// The program's loader.
        loader: String,
    },
}

/// How much of a file is read: program headers and the path of the loader are at its beginning.
const BEGINNING: u64 = 64 * 1024;
/// How many scripts may be interpreted by scripts, as in the kernel.
const MAX_SCRIPTS: usize = 4;

/// Says whether the program that `name` stands for would load the library. A file that cannot be read or found counts as
/// one that does: starting it says why not.
///
/// For a script, that is its interpreter, and the program that `env` looks for.
///
/// # Errors
///
/// [`Unsuitable`] if the library has no effect on it.
pub fn check(name: &OsStr, path: Option<&OsStr>, library: &Path) -> Result<(), Unsuitable> {
    let library = std::fs::read(library).ok();
    for (program, elf) in find_elves(name, path, MAX_SCRIPTS) {
        check_elf(program, elf, library.as_deref())?;
    }
    Ok(())
}

fn check_elf(program: PathBuf, elf: Elf, library: Option<&[u8]>) -> Result<(), Unsuitable> {
    let own = library.and_then(Elf::parse);
    if let Some(own) = own.filter(|own| own.processor != elf.processor) {
        return Err(match is_narrow(elf.processor, own.processor) {
            true => Unsuitable::Narrow(program),
            false => Unsuitable::OtherProcessor(program),
        });
    }
    let Loader::Dynamic(loader) = elf.loader else {
        return Err(Unsuitable::Static(program));
    };
    if secure_exec::gains_rights(&program).unwrap_or(false) {
        return Err(Unsuitable::GainsRights(program));
    }
    match (loader.contains("ld-musl"), library.map(is_of_musl)) {
        (true, Some(false)) => Err(Unsuitable::OfMusl { program, loader }),
        (false, Some(true)) => Err(Unsuitable::NotOfMusl { program, loader }),
        _ => Ok(()),
    }
}

/// Says whether the calls of the program that `name` stands for can be seen at all. The kernel runs 32-bit programs
/// as well, whose calls have other numbers.
///
/// # Errors
///
/// [`Unsuitable::Narrow`].
pub fn check_width(name: &OsStr, path: Option<&OsStr>) -> Result<(), Unsuitable> {
    let own = beginning(Path::new("/proc/self/exe")).ok();
    let own = own.as_deref().and_then(Elf::parse);
    let Some(own) = own else {
        return Ok(());
    };
    let mut elves = find_elves(name, path, MAX_SCRIPTS).into_iter();
    match elves.find(|(_, elf)| is_narrow(elf.processor, own.processor)) {
        Some((program, _)) => Err(Unsuitable::Narrow(program)),
        None => Ok(()),
    }
}

/// Whether the kernel of one kind of processor runs programs of another one in its 32-bit mode.
fn is_narrow(program: (u8, u16), own: (u8, u16)) -> bool {
    // From elf.h.
    const I386: u16 = 3;
    const ARM: u16 = 40;
    const X86_64: u16 = 62;
    const AARCH64: u16 = 183;
    matches!(
        (own, program),
        ((64, X86_64), (32, I386 | X86_64)) | ((64, AARCH64), (32, ARM | AARCH64))
    )
}

/// The programs that are executed, and what their files say: one, and for a script of `env` also the one that that looks
/// for. Empty if they cannot be read or found.
fn find_elves(name: &OsStr, path: Option<&OsStr>, scripts: usize) -> Vec<(PathBuf, Elf)> {
    let Some(program) = find(name, path) else {
        return Vec::new();
    };
    let bytes = beginning(&program).unwrap_or_default();
    match (interpreters(&bytes), scripts.checked_sub(1)) {
        (Some(interpreters), Some(scripts)) => {
            let elves = interpreters
                .iter()
                .map(|name| find_elves(name, path, scripts));
            elves.flatten().collect()
        }
        (Some(_), None) => Vec::new(),
        (None, _) => Elf::parse(&bytes)
            .map(|elf| (program, elf))
            .into_iter()
            .collect(),
    }
}

/// Whether a library needs no symbol of the GNU C library.
fn is_of_musl(library: &[u8]) -> bool {
    const VERSION: &[u8] = b"GLIBC_2.";
    !library.windows(VERSION.len()).any(|bytes| bytes == VERSION)
}

fn beginning(program: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(program)?
        .take(BEGINNING)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The interpreter of a script, and the program that it looks for if it is `env`. Empty if the line names none. `None` for
/// another kind of file.
fn interpreters(bytes: &[u8]) -> Option<Vec<OsString>> {
    let line = bytes
        .strip_prefix(b"#!")?
        .split(|byte| *byte == b'\n')
        .next()?;
    let words = line.split(|byte| matches!(byte, b' ' | b'\t'));
    let mut words = words.filter(|word| !word.is_empty()).map(OsStr::from_bytes);
    let first = words.next();
    let is_env = first.is_some_and(|first| Path::new(first).file_name() == Some("env".as_ref()));
    let is_option = |word: &&OsStr| {
        let bytes = word.as_bytes();
        bytes.starts_with(b"-") || bytes.contains(&b'=')
    };
    let sought = words.find(|word| is_env && !is_option(word));
    Some(
        first
            .into_iter()
            .chain(sought)
            .map(OsStr::to_owned)
            .collect(),
    )
}

/// The file that `execvp` takes for a name.
fn find(name: &OsStr, path: Option<&OsStr>) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(name));
    }
    let folders = path.unwrap_or(OsStr::new("/bin:/usr/bin"));
    let is_program = |file: &PathBuf| {
        let metadata = file.metadata();
        metadata.is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let files = std::env::split_paths(folders).map(|folder| folder.join(name));
    files.into_iter().find(is_program)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A folder with programs, of which each is the beginning of one.
    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let file = dir.path().join(name);
            fs::write(&file, bytes).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
        dir
    }

    /// A static program of this processor.
    fn static_program() -> Vec<u8> {
        let mut bytes = fs::read("/proc/self/exe").unwrap();
        // No program headers.
        bytes.splice(56..58, [0, 0]);
        bytes.truncate(4096);
        bytes
    }

    fn check_in(dir: &Path, name: &str) -> Result<(), Unsuitable> {
        // This program stands for the library: same processor, same C library.
        let own = Path::new("/proc/self/exe");
        check(name.as_ref(), Some(dir.as_os_str()), own)
    }

    #[test]
    fn a_dynamic_program_is_suitable_and_a_static_one_is_not() {
        let own = fs::read("/proc/self/exe").unwrap();
        let dir = folder(&[("dynamic", &own), ("static", &static_program())]);
        check_in(dir.path(), "dynamic").unwrap();
        let error = check_in(dir.path(), "static").unwrap_err();
        assert!(
            error.to_string().contains("static is linked statically"),
            "{error}"
        );
        // What cannot be started says so itself.
        check_in(dir.path(), "nothing").unwrap();
        check_in(dir.path(), "/nothing/at/all").unwrap();
    }

    #[test]
    fn a_script_is_judged_by_its_interpreter() {
        let dir = folder(&[
            ("static", &static_program()),
            ("one", b"#! /usr/bin/env -S A=b static -x\necho"),
            ("circle", b"#!circle\n"),
            ("empty", b"#!\n"),
            ("text", b"echo hello\n"),
        ]);
        let error = check_in(dir.path(), "one").unwrap_err();
        assert!(matches!(error, Unsuitable::Static(_)), "{error}");
        let direct = dir.path().join("direct");
        let line = format!("#!{}\n", dir.path().join("static").display());
        fs::write(&direct, line).unwrap();
        assert!(check_in(dir.path(), direct.to_str().unwrap()).is_err());
        for name in ["circle", "empty", "text"] {
            check_in(dir.path(), name).unwrap();
        }
    }

    #[test]
    fn a_program_of_another_processor_or_c_library_is_unsuitable() {
        let own = fs::read("/proc/self/exe").unwrap();
        let mut other = own.clone();
        other[18] ^= 0x55;
        let text = own.windows(4).position(|bytes| bytes == b"/ld-").unwrap();
        let mut musl = own.clone();
        musl.splice(text..text + 8, *b"/ld-musl");
        let dir = folder(&[("other", &other), ("musl", &musl)]);
        let error = check_in(dir.path(), "other").unwrap_err();
        assert!(matches!(error, Unsuitable::OtherProcessor(_)), "{error}");
        let error = check_in(dir.path(), "musl").unwrap_err();
        assert!(matches!(error, Unsuitable::OfMusl { .. }), "{error}");
        // A library without symbols of the GNU C library.
        let library = dir.path().join("library");
        fs::write(&library, static_program()).unwrap();
        let check_with = |name: &str| check(name.as_ref(), Some(dir.path().as_os_str()), &library);
        check_with("musl").unwrap();
        // `env` itself is of the GNU C library, as this program is.
        let by_env = dir.path().join("by-env");
        let env = dir.path().join("env");
        fs::write(&env, &own).unwrap();
        fs::write(&by_env, format!("#!{} musl\n", env.display())).unwrap();
        let error = check_with(by_env.to_str().unwrap()).unwrap_err();
        assert!(error.to_string().contains("/env is not"), "{error}");
        let error = check_in(dir.path(), by_env.to_str().unwrap()).unwrap_err();
        assert!(matches!(error, Unsuitable::OfMusl { .. }), "{error}");
        let gnu = dir.path().join("gnu");
        fs::write(&gnu, &own).unwrap();
        let error = check(gnu.as_os_str(), None, &library).unwrap_err();
        assert!(matches!(error, Unsuitable::NotOfMusl { .. }), "{error}");
    }

    #[test]
    fn a_32_bit_program_is_unsuitable_for_both_ways_static_or_not() {
        let mut program = static_program();
        // The class, and the places of the table of program headers.
        program[4] = 1;
        program[28..32].fill(0);
        program[42..46].fill(0);
        let dir = folder(&[
            ("narrow", &program),
            ("script", b"#! /usr/bin/env narrow\n"),
        ]);
        for name in ["narrow", "script"] {
            let error = check_in(dir.path(), name).unwrap_err();
            assert!(matches!(error, Unsuitable::Narrow(_)), "{error}");
            let error = check_width(name.as_ref(), Some(dir.path().as_os_str())).unwrap_err();
            assert!(
                error.to_string().contains("narrow is a 32-bit program"),
                "{error}"
            );
        }
        check_width("/proc/self/exe".as_ref(), None).unwrap();
        let x86_64 = (64, 62);
        for (program, narrow) in [
            ((32, 3), true),
            ((32, 62), true),
            ((32, 40), false),
            (x86_64, false),
        ] {
            assert_eq!(is_narrow(program, x86_64), narrow, "{program:?}");
        }
    }

    #[test]
    fn a_program_with_the_rights_of_another_user_is_unsuitable() {
        let own = fs::read("/proc/self/exe").unwrap();
        let dir = folder(&[("other", &own)]);
        let file = dir.path().join("other");
        if std::os::unix::fs::chown(&file, Some(65_534), None).is_err() {
            return;
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4755)).unwrap();
        let error = check_in(dir.path(), "other").unwrap_err();
        assert!(matches!(error, Unsuitable::GainsRights(_)), "{error}");
    }
}
