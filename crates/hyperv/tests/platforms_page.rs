//! Checks the claims of docs/platforms.md: each mark is defined, each named test exists, each source
//! is used, and no call, address, option or error is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use hvsock_address::VmId;
use hvsock_fabric::Refusal;

const COLUMNS: [&str; 5] = [
    "Windows host",
    "Windows guest",
    "Linux guest, Hyper-V",
    "Linux guest, virtio",
    "Linux host",
];

/// A claim in a cell: a mark and its reference.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    /// `T`, `L`, `W` or `S`, and the key of a test.
    Tested(char, String),
    /// `D`, `A` or `–`, and the number of a source or reason.
    Follows(char, u32),
}

fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("the project")
}

fn page() -> String {
    let text = fs::read_to_string(root().join("docs/platforms.md")).expect("the page");
    text.replace("\r\n", "\n")
}

/// The text under a heading.
fn part<'a>(page: &'a str, heading: &str) -> &'a str {
    let begin = page.find(&format!("\n## {heading}\n")).expect(heading);
    let rest = &page[begin + 1..];
    let end = rest[1..].find("\n## ").map_or(rest.len(), |at| at + 1);
    &rest[..end]
}

/// The rows of the tables in a part, without their headers.
fn rows(part: &str) -> Vec<Vec<&str>> {
    part.lines()
        .filter(|line| line.starts_with('|') && !line.starts_with("|---"))
        .skip(1)
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

/// The header cells of a part's table.
fn head(part: &str) -> Vec<&str> {
    let line = part
        .lines()
        .find(|line| line.starts_with('|'))
        .expect("a table");
    line.trim_matches('|').split('|').map(str::trim).collect()
}

fn claims(cell: &str) -> Vec<Claim> {
    let words = cell.split(' ').map(|word| {
        let mark = word.chars().next().unwrap_or('?');
        let rest = &word[mark.len_utf8()..];
        let key = rest
            .strip_prefix('(')
            .and_then(|rest| rest.strip_suffix(')'));
        let number = rest
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        match (mark, key, number.and_then(|number| number.parse().ok())) {
            ('T' | 'L' | 'W' | 'S', Some(key), None) => Claim::Tested(mark, key.to_owned()),
            ('D' | 'A' | '–', None, Some(number)) => Claim::Follows(mark, number),
            _ => panic!("`{word}` in `{cell}` is no claim"),
        }
    });
    words.collect()
}

/// The parts with claims, and the number of cells before the claims in each row.
const PARTS: [(&str, usize); 5] = [
    ("Calls", 1),
    ("Addresses", 1),
    ("Options", 1),
    ("Errors", 2),
    ("Around the sockets", 1),
];

/// All claims, each with its column.
fn all_claims(page: &str) -> Vec<(&'static str, Claim)> {
    let mut all = Vec::new();
    for (heading, before) in PARTS {
        let part = part(page, heading);
        assert_eq!(head(part)[before..], COLUMNS, "{heading}");
        for row in rows(part) {
            assert_eq!(row.len(), before + COLUMNS.len(), "{row:?}");
            for (column, cell) in COLUMNS.into_iter().zip(&row[before..]) {
                all.extend(claims(cell).into_iter().map(|claim| (column, claim)));
            }
        }
    }
    all
}

/// The tests by key, with their description.
fn tests(page: &str) -> BTreeMap<&str, &str> {
    let rows = rows(part(page, "Tests"));
    let count = rows.len();
    let tests: BTreeMap<_, _> = rows.into_iter().map(|row| (row[0], row[1])).collect();
    assert_eq!(tests.len(), count, "two tests have one key");
    tests
}

/// The numbers of the sources.
fn sources(page: &str) -> BTreeSet<u32> {
    let lines = part(page, "Sources and reasons").lines();
    let numbers = lines.filter_map(|line| line.split_once(". ")?.0.parse().ok());
    let numbers: Vec<u32> = numbers.collect();
    // Markdown renderers number the list themselves.
    assert!(
        numbers.iter().copied().eq(1..=numbers.len() as u32),
        "{numbers:?}"
    );
    numbers.into_iter().collect()
}

#[test]
fn every_test_that_is_named_exists() {
    let page = page();
    for (key, text) in tests(&page) {
        let mut file = None;
        for quoted in text.split('`').skip(1).step_by(2) {
            if quoted.contains('/') {
                let path = root().join(quoted);
                let source = fs::read_to_string(&path);
                file = Some(source.unwrap_or_else(|why| panic!("{key}: {quoted}: {why}")));
                continue;
            }
            let source = file
                .as_deref()
                .unwrap_or_else(|| panic!("{key} has no file"));
            // A test, or a case or transport of the conformance suite.
            let there = source.contains(&format!("fn {quoted}("))
                || source.contains(&format!("\"{quoted}\""));
            assert!(there, "{key}: there is no {quoted}");
        }
        assert!(file.is_some(), "{key} names no file");
    }
}

#[test]
fn every_claim_has_a_reference_and_every_reference_is_used() {
    let page = page();
    let (tests, sources) = (tests(&page), sources(&page));
    // References in the text count as well.
    let in_text = |text: &str| page.contains(text);
    let claims = all_claims(&page);
    for (column, claim) in &claims {
        match claim {
            Claim::Tested(mark, key) => {
                assert!(tests.contains_key(key.as_str()), "{key} is no test");
                // Each kind of test applies to one kind of system only.
                let marks: &[char] = match *column {
                    "Linux host" => &['T'],
                    "Linux guest, virtio" => &['T', 'L'],
                    // There is no such test system.
                    "Linux guest, Hyper-V" => &['L'],
                    _ => &['W', 'S'],
                };
                assert!(marks.contains(mark), "{mark}({key}) under {column}");
            }
            Claim::Follows(_, number) => {
                assert!(sources.contains(number), "there is no [{number}]");
            }
        }
    }
    for key in tests.keys() {
        let used = claims
            .iter()
            .any(|(_, claim)| matches!(claim, Claim::Tested(_, k) if k == key));
        assert!(
            used || in_text(&format!("({key})")),
            "nothing refers to {key}"
        );
    }
    for number in sources {
        let used = claims
            .iter()
            .any(|(_, claim)| matches!(claim, Claim::Follows(_, n) if *n == number));
        assert!(
            used || in_text(&format!("[{number}]")),
            "nothing refers to [{number}]"
        );
    }
}

/// The shim is not Windows. So a cell that relies on it must also cite a source on Windows.
#[test]
fn no_claim_on_windows_relies_on_the_shim_alone() {
    let page = page();
    for heading in ["Calls", "Errors"] {
        for row in rows(part(&page, heading)) {
            let cells = row.iter().filter(|cell| cell.contains("S("));
            for cell in cells {
                let says = claims(cell)
                    .iter()
                    .any(|claim| matches!(claim, Claim::Follows(..)));
                assert!(says, "{row:?}: `{cell}`");
            }
        }
    }
}

#[test]
fn no_address_option_or_error_is_missing() {
    let page = page();
    let first = |heading| {
        let cells = rows(part(&page, heading))
            .into_iter()
            .map(|row| row[0].to_owned());
        cells.collect::<Vec<_>>()
    };
    let errors: Vec<_> = Refusal::ALL_LABELS
        .iter()
        .map(|label| format!("`{label}`"))
        .collect();
    assert_eq!(first("Errors"), errors);
    let addresses = first("Addresses").join(", ");
    for (word, _) in VmId::WELL_KNOWN {
        assert!(addresses.contains(&word.to_uppercase()), "{word}");
    }
    let options = first("Options").join(", ");
    let source = root().join("crates/hvsock/src/socket/option.rs");
    let source = fs::read_to_string(source).expect("the options");
    let known: Vec<_> = source
        .lines()
        .filter_map(|line| line.trim().strip_prefix("/// `"))
        .collect();
    assert_eq!(known.len(), 6);
    for option in known.iter().filter_map(|line| line.split('`').next()) {
        assert!(options.contains(option), "{option}");
    }
    let calls = first("Calls").join(", ");
    let source = fs::read_to_string(root().join("crates/hvsock/src/socket/mod.rs")).expect("calls");
    for call in [
        "bind", "listen", "accept", "connect", "send", "recv", "shutdown",
    ] {
        assert!(
            source.contains(&format!("pub fn {call}(")),
            "there is no call {call}"
        );
        assert!(calls.contains(call), "{call}");
    }
}

/// The numbers of the refusals are those that programs get.
#[test]
fn the_numbers_are_those_of_the_refusals() {
    const NUMBERS: [(&str, i32); 12] = [
        ("WSAEACCES", 10013),
        ("WSAEINVAL", 10022),
        ("WSAEOPNOTSUPP", 10045),
        ("WSAEAFNOSUPPORT", 10047),
        ("WSAEADDRINUSE", 10048),
        ("WSAEADDRNOTAVAIL", 10049),
        ("WSAENETDOWN", 10050),
        ("WSAENETUNREACH", 10051),
        ("WSAECONNRESET", 10054),
        ("WSAENOBUFS", 10055),
        ("WSAETIMEDOUT", 10060),
        ("WSAECONNREFUSED", 10061),
    ];
    let page = page();
    for (code, row) in (1..).zip(rows(part(&page, "Errors"))) {
        let wsa = Refusal::from_wire(code, "").wsa();
        let name = row[1].split(',').next().unwrap_or_default();
        assert!(NUMBERS.contains(&(name, wsa)), "{row:?}: {wsa}");
    }
}
