//! The page's table and the tests are the same set.

use std::collections::BTreeSet;

const PAGE: &str = include_str!("../../../../docs/programs.md");

/// Asserts that the page's table lists exactly these tests of this target.
pub fn lists(tests: &[String]) {
    let lines = PAGE.lines().filter(|line| line.starts_with('|'));
    let last = |line: &str| line.trim_matches('|').rsplit('|').next().map(str::to_owned);
    let cells = lines.filter_map(last);
    let named = |cell: String| {
        let test = cell.trim().strip_prefix('`')?.strip_suffix('`')?.to_owned();
        test.contains("::").then_some(test)
    };
    let listed: BTreeSet<String> = cells.filter_map(named).collect();
    let expected: BTreeSet<String> = tests.iter().cloned().collect();
    let lacking: Vec<_> = expected.difference(&listed).collect();
    let unknown: Vec<_> = listed.difference(&expected).collect();
    assert!(lacking.is_empty(), "not on the page: {lacking:?}");
    assert!(unknown.is_empty(), "no test of the page: {unknown:?}");
}
