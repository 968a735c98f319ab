//! Small crates, as text, whose circles are known.

use std::path::Path;

use crate::circles;
use crate::source::Source;

/// The circles of a crate of these files, each as its files' names.
fn circles(files: &[(&str, &str)]) -> Vec<String> {
    let source = Source::read(Path::new("lib.rs"), &|wanted| {
        let found = files.iter().find(|(name, _)| Path::new(name) == wanted);
        found.map(|(_, text)| (*text).to_owned())
    });
    let circles = circles::find(&source);
    let names = circles.iter().map(|circle| {
        let files = circle.files.iter().map(|file| file.to_string_lossy());
        files.collect::<Vec<_>>().join(" ")
    });
    names.collect()
}

const NONE: [&str; 0] = [];

#[test]
fn two_siblings_that_import_each_other_are_a_circle() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "use crate::b::B; pub struct A(B);"),
        ("b.rs", "use super::a::A; pub struct B(Box<A>);"),
        ("c.rs", "use crate::{a::A, b};"),
    ];
    assert_eq!(circles(&files), ["a.rs b.rs"]);
}

#[test]
fn the_lines_that_make_a_circle_are_named() {
    let source = Source::read(Path::new("lib.rs"), &|file| {
        Some(match file.to_str()? {
            "lib.rs" => "mod a;\nmod b;".to_owned(),
            "a.rs" => "\nuse crate::b::B;\npub struct A;".to_owned(),
            "b.rs" => "pub struct B;\n\n\nfn f() { crate::a::A; }".to_owned(),
            _ => return None,
        })
    });
    let circle = circles::find(&source).pop().expect("there is a circle");
    assert_eq!(
        circle.to_string(),
        "2 modules need each other:\n  \
         a.rs uses b.rs: line 2: crate::b::B\n  \
         b.rs uses a.rs: line 4: crate::a::A\n"
    );
}

#[test]
fn paths_in_bodies_types_and_macros_count() {
    for body in [
        "fn f() { crate::b::b(); }",
        "struct A { b: Vec<super::b::B> }",
        "fn f() { println!(\"{}\", crate::b::b()); }",
        "impl crate::b::T for u8 {}",
        "fn f() { use crate::b::*; use crate::b::B; }",
        "fn f() { match x { b::B => {} } } use crate::b;",
    ] {
        let files = [
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", body),
            (
                "b.rs",
                "use crate::a; pub struct B; pub fn b() { a::f() } pub trait T {}",
            ),
        ];
        let also_a = format!("{body} pub fn f() {{}}");
        let body = if body.contains("fn f()") {
            body
        } else {
            &also_a
        };
        let files = [files[0], ("a.rs", body), files[2]];
        assert_eq!(circles(&files), ["a.rs b.rs"], "{body}");
    }
}

#[test]
fn a_facade_and_its_children_are_no_circle() {
    let files = [
        ("lib.rs", "mod a; pub use a::{A, make};"),
        (
            "a/mod.rs",
            "mod one; mod two; pub use one::A; pub(crate) use two::*;",
        ),
        ("a/one.rs", "pub struct A;"),
        ("a/two.rs", "use super::A; pub fn make() -> crate::A { A }"),
    ];
    assert_eq!(circles(&files), NONE);
}

#[test]
fn a_path_through_a_re_export_counts_for_the_definition() {
    let files = [
        ("lib.rs", "mod a; mod b; pub use b::*;"),
        ("a.rs", "use crate::B; pub struct A;"),
        ("b.rs", "pub struct B; fn f(_: crate::a::A) {}"),
    ];
    assert_eq!(circles(&files), ["a.rs b.rs"]);
}

#[test]
fn a_child_that_uses_what_its_user_defines_is_a_circle() {
    let files = [
        ("lib.rs", "mod a;"),
        ("a/mod.rs", "mod child; pub struct A; fn f() { child::f() }"),
        ("a/child.rs", "use super::A; pub fn f() {}"),
    ];
    assert_eq!(circles(&files), ["a/child.rs a/mod.rs"]);
    // The parent declares its child and uses nothing of it.
    let files = [
        ("lib.rs", "mod a;"),
        ("a/mod.rs", "mod child; pub struct A;"),
        ("a/child.rs", "use super::*; impl A { fn f(_: A) {} }"),
    ];
    assert_eq!(circles(&files), NONE);
}

#[test]
fn tests_may_use_everything() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        (
            "a.rs",
            "pub struct A; #[cfg(test)] mod tests { use crate::b::B; } \
             #[cfg(all(test, not(loom)))] mod more; #[cfg(test)] use crate::b::B; \
             #[cfg(test)] impl A { fn b() -> crate::b::B {} } \
             impl A { #[cfg(test)] fn c() -> crate::b::B {} }",
        ),
        ("a/more.rs", "use crate::b::B;"),
        ("b.rs", "use crate::a::A; pub struct B;"),
    ];
    assert_eq!(circles(&files), NONE);
    let files = [
        ("lib.rs", "mod a; mod b;"),
        (
            "a.rs",
            "pub struct A; #[cfg(any(windows, test))] use crate::b::B;",
        ),
        ("b.rs", "use crate::a::A; pub struct B;"),
    ];
    assert_eq!(circles(&files), ["a.rs b.rs"]);
}

#[test]
fn modules_inside_a_file_and_of_either_system_are_followed() {
    let files = [
        ("lib.rs", "mod os; mod b;"),
        (
            "os/mod.rs",
            "#[cfg(unix)] mod linux; #[cfg(windows)] mod windows; \
             #[cfg(unix)] pub use linux::Os; #[cfg(windows)] pub use windows::Os;",
        ),
        ("os/linux.rs", "pub struct Os;"),
        (
            "os/windows.rs",
            "mod inner { use crate::b::B; } pub struct Os;",
        ),
        ("b.rs", "use crate::os::Os; pub struct B;"),
    ];
    assert_eq!(circles(&files), ["b.rs os/windows.rs"]);
}

#[test]
fn an_item_that_a_macro_defines_is_found() {
    let files = [
        ("lib.rs", "mod ids; mod b;"),
        (
            "ids.rs",
            "macro_rules! id { ($n:ident) => { pub struct $n(crate::b::B); } } id!(Id);",
        ),
        ("b.rs", "pub struct B; fn f(_: crate::ids::Id) {}"),
    ];
    assert_eq!(circles(&files), ["b.rs ids.rs"]);
}

#[test]
fn other_crates_and_imports_of_themselves_lead_nowhere() {
    let files = [
        (
            "lib.rs",
            "mod a; mod b; use std::fmt; use b::b; pub use self::a::*;",
        ),
        (
            "a.rs",
            "use serde::b; use crate::c::D; pub use crate::*; pub struct A;",
        ),
        ("b.rs", "use a::A; use ::a::B; pub fn b() {}"),
    ];
    assert_eq!(circles(&files), NONE);
}
