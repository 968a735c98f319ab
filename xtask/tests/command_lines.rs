//! No crate below the command spells a command line: its messages say in plain English what would help, or have it as
//! a value. Only the command knows its own subcommands and options, and the user's shell.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Crates that are commands themselves, or are for tests only.
const OTHER_CRATES: [&str; 3] = ["cli", "guests", "testkit"];

/// The program `hvsock-agent`, which is in the crate of the services and has a command line of its own.
const AGENT: [&str; 3] = [
    "services/src/agent/",
    "services/src/agent.rs",
    "services/src/main.rs",
];

/// Programs that a message might tell a user to run.
const PROGRAMS: [&str; 14] = [
    "chmod",
    "chown",
    "hvsock",
    "hvsock-agent",
    "kill",
    "loginctl",
    "modprobe",
    "mount",
    "rm",
    "sudo",
    "systemctl",
    "ulimit",
    "usermod",
    "wsl.exe",
];

/// The first words of PowerShell's commands.
const VERBS: [&str; 6] = ["Enable-", "Get-", "Install-", "Set-", "Start-", "Stop-"];

#[test]
fn no_crate_below_the_command_spells_a_command_line() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("crates");
    let subcommands = subcommands(&crates.join("cli/src"));
    assert!(subcommands.contains("service") && subcommands.contains("vm"));
    let mut found = Vec::new();
    let mut read = 0;
    for folder in std::fs::read_dir(&crates).expect("the folder of crates") {
        let folder = folder.expect("a crate").path();
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        if OTHER_CRATES.contains(&&*name) {
            continue;
        }
        for file in files(&folder.join("src")) {
            let shown = file.strip_prefix(&crates).expect("a file below").to_owned();
            if AGENT
                .iter()
                .any(|agent| shown.to_string_lossy().starts_with(agent))
            {
                continue;
            }
            let text = std::fs::read_to_string(&file).expect("UTF-8");
            read += 1;
            for (line, literal) in literals(&text) {
                if let Some(why) = command_line(&literal, &subcommands) {
                    found.push(format!(
                        "crates/{}:{line}: {why} in {literal:?}",
                        shown.display()
                    ));
                }
            }
        }
    }
    assert!(read > 300, "{read} files");
    assert!(
        found.is_empty(),
        "Say what would help in plain English, or return a `Fix`; the command spells it.\n{}",
        found.join("\n")
    );
}

/// The names of the subcommands: the files and folders of the command's sources.
fn subcommands(cli: &Path) -> BTreeSet<String> {
    let folders = ["command", "os/linux/command", "os/windows/command"];
    let entries = folders.map(|folder| std::fs::read_dir(cli.join(folder)).expect("its folder"));
    let names = entries.into_iter().flatten().flatten().filter_map(|entry| {
        let path = entry.path();
        Some(path.file_stem()?.to_str()?.to_owned())
    });
    let mut names: BTreeSet<_> = names.filter(|name| name != "mod").collect();
    // Those of `session` have names of their own.
    names.extend(["exec", "shell"].map(str::to_owned));
    names
}

/// What makes a text a command line, or have one in it.
fn command_line(text: &str, subcommands: &BTreeSet<String>) -> Option<String> {
    // `hvsock time` is also the name of a service, and `hvsock.exe` a file.
    let is_word = |c: char| c.is_ascii_lowercase() || c == '-';
    for (at, _) in text.match_indices("hvsock ") {
        let rest = &text[at + "hvsock ".len()..];
        let word = &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())];
        let is_whole = at == 0 && rest == word;
        if !is_whole && subcommands.contains(word) {
            return Some(format!("`hvsock {word}`"));
        }
    }
    let options = text.match_indices("--").find(|(at, _)| {
        let starts = *at == 0 || text[..*at].ends_with([' ', '`', '(']);
        let next = text[at + 2..].chars().next();
        // An argument for another program stands alone.
        starts && next.is_some_and(|c| c.is_ascii_lowercase()) && text.contains(' ')
    });
    if let Some((at, _)) = options {
        return Some(format!("the option {:?}", &text[at..]));
    }
    let quoted = text.split('`').skip(1).step_by(2);
    let run = text.split("run: ").skip(1);
    let whole = (!text.starts_with("hvsock ")).then_some(text);
    for command in quoted.chain(run).chain(whole) {
        let word = command.split(' ').next().unwrap_or_default();
        let is_program = PROGRAMS.contains(&word) && (command != word || word == "hvsock-agent");
        if is_program || VERBS.iter().any(|verb| word.starts_with(verb)) {
            return Some(format!("`{command}`"));
        }
    }
    None
}

/// The string literals of a file with their lines, without those of comments and tests.
fn literals(text: &str) -> Vec<(usize, String)> {
    let tokens = TokenStream::from_str(text).expect("Rust");
    let mut found = Vec::new();
    collect(tokens, &mut found);
    found
}

fn collect(tokens: TokenStream, found: &mut Vec<(usize, String)>) {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Punct(mark) if mark.as_char() == '#' => {
                // `#!` begins an attribute of the module.
                let is_inner = |token: &TokenTree| matches!(token, TokenTree::Punct(mark) if mark.as_char() == '!');
                tokens.next_if(is_inner);
                let is_attribute = |token: &TokenTree| matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket);
                let Some(attribute) = tokens.next_if(is_attribute) else {
                    continue;
                };
                let text = attribute.to_string().replace(' ', "");
                if text.starts_with("[cfg(test)]") {
                    // The item ends with its block, or with a semicolon.
                    for token in tokens.by_ref() {
                        match token {
                            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                                break;
                            }
                            TokenTree::Punct(mark) if mark.as_char() == ';' => break,
                            _ => {}
                        }
                    }
                } else if let TokenTree::Group(group) = attribute
                    && text.starts_with("[error(")
                {
                    collect(group.stream(), found);
                }
            }
            TokenTree::Group(group) => collect(group.stream(), found),
            TokenTree::Literal(literal) => {
                let line = literal.span().start().line;
                if let Ok(text) = syn::parse_str::<syn::LitStr>(&literal.to_string()) {
                    found.push((line, text.value()));
                }
            }
            _ => {}
        }
    }
}

/// The files of a crate that are no tests.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        if name == "tests" || name.ends_with("_tests") {
            continue;
        }
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_command_line_is_recognized() {
    let subcommands = BTreeSet::from(["service", "kvp"].map(str::to_owned));
    let is_command = |text| command_line(text, &subcommands).is_some();
    for text in [
        "no such service; `hvsock service list` shows all",
        "hvsock service enable {name}",
        "choose another folder with --dir",
        "--vm {name}, if that is the cause",
        "load it with `modprobe vsock_loopback`",
        "other users could write; run: chmod go-w /x",
        "enable it with `Enable-WindowsOptionalFeature -Online`",
        "is `hvsock-agent` running there?",
        "chmod go-w {path}",
    ] {
        assert!(is_command(text), "{text}");
    }
    for text in [
        "hvsock kvp",
        "hvsock control API",
        "--quiet",
        "the value `a b` is -- not valid",
        "`chmod` failed",
        "the module `vsock` is not loaded",
    ] {
        assert!(!is_command(text), "{text}");
    }
}

#[test]
fn literals_of_comments_and_tests_are_left_out() {
    let text = r##"
        //! "a"
        /// "b"
        #[error("c {0}")]
        struct S; // "d"
        const X: &str = r#"e"#;
        #[cfg(test)]
        mod tests { const Y: &str = "f"; }
        #[doc(alias = "g")]
        fn f() { g("h\
            i", 'j', b"k"); }
    "##;
    let found: Vec<_> = literals(text).into_iter().map(|(_, text)| text).collect();
    assert_eq!(found, ["c {0}", "e", "hi"]);
}
