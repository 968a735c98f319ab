//! `hvsock man`.

use std::fs;

use crate::help::COMMANDS;
use crate::util::{Completed, folder, hvsock};

/// The name and text of every page.
fn pages() -> Vec<(String, String)> {
    let folder = folder();
    Completed::of(hvsock().arg("man").arg("--output").arg(folder.path())).ok();
    let count = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(count, COMMANDS.len());
    let pages = COMMANDS.iter().map(|command| {
        let name = [&["hvsock"], *command].concat().join("-");
        let page = fs::read_to_string(folder.path().join(format!("{name}.1")));
        let page = page.unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, page)
    });
    pages.collect()
}

/// The section of a page.
fn section<'a>(page: &'a str, name: &str) -> &'a str {
    let headings = [format!(".SH {name}\n"), format!(".SH \"{name}\"\n")];
    let start = headings
        .iter()
        .find_map(|heading| Some(page.find(heading)? + heading.len()));
    let rest = &page[start.unwrap_or_else(|| panic!("no {name} in {page}"))..];
    &rest[..rest.find("\n.SH ").map_or(rest.len(), |end| end + 1)]
}

#[test]
fn every_command_has_a_page_with_all_sections_in_order() {
    for (name, page) in pages() {
        let sections = page.lines().filter_map(|line| line.strip_prefix(".SH "));
        let sections: Vec<&str> = sections
            .map(|section| section.trim_matches('"'))
            .filter(|section| *section != "SUBCOMMANDS")
            .collect();
        let expected = [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "OPTIONS",
            "EXIT STATUS",
            "ENVIRONMENT",
            "EXAMPLES",
            "SEE ALSO",
        ];
        assert_eq!(sections, expected, "{name}");
        let title = format!(".TH {} 1 ", name.to_uppercase());
        assert!(page.contains(&title), "{name}: {page}");
        assert_eq!(page.matches(".ds Aq").count(), 2, "{name}: {page}");
        assert!(
            !page.contains("demo-guest") && !page.contains("-help(1)"),
            "{name}"
        );
    }
}

#[test]
fn examples_are_verbatim() {
    for (name, page) in pages() {
        let examples = section(&page, "EXAMPLES");
        let mut is_verbatim = false;
        let mut commands = 0;
        for line in examples.lines() {
            match line {
                ".nf" => is_verbatim = true,
                ".fi" => is_verbatim = false,
                line if line.contains("hvsock") && is_verbatim => commands += 1,
                line => assert!(!line.starts_with("hvsock "), "{name}: {line}"),
            }
        }
        assert!(commands > 0 && !is_verbatim, "{name}: {examples}");
    }
}

#[test]
fn a_page_describes_its_own_command() {
    let pages = pages();
    let page = |name: &str| &pages.iter().find(|page| page.0 == name).unwrap().1;
    let wait = page("hvsock-container-wait");
    let examples = section(wait, "EXAMPLES");
    assert!(examples.contains("hvsock container wait web"), "{examples}");
    assert!(!examples.contains("hvsock vm"), "{examples}");
    let also = section(wait, "SEE ALSO");
    assert!(also.contains("hvsock\\-container"), "{also}");

    let exec = page("hvsock-exec");
    assert!(section(exec, "EXIT STATUS").contains("127"), "{exec}");
    assert!(section(exec, "DESCRIPTION").contains("SIGUSR2"), "{exec}");
    assert!(section(page("hvsock-broker"), "ENVIRONMENT").contains("RUST_LOG"));
    assert!(section(page("hvsock"), "SUBCOMMANDS").contains("hvsock\\-exec(1)"));
}

#[test]
fn man_without_a_folder_prints_the_page_of_hvsock() {
    let page = Completed::of(hvsock().arg("man")).ok();
    assert!(page.contains(".TH HVSOCK 1"), "{page}");
}
