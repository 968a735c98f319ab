//! Edits a handwritten file: changes only the differing values, and keeps comments, order and spelling.

use std::path::Path;

use toml_edit::{DocumentMut, Item, TableLike, TomlError};

use super::kind::EntryKind;
use crate::store::Problem;
use crate::toml_problem;

/// Edits `bytes`, a file with an earlier state of an entry, to contain its new state.
pub(crate) fn edit<K: EntryKind>(
    path: &Path,
    bytes: &[u8],
    key: &K::Key,
    new: &K::Entry,
    built_in: Option<&K::Entry>,
) -> Result<String, Problem> {
    let old = K::decode(path, key, bytes, built_in)?;
    let text = toml_problem::text(path, bytes)?;
    let parse = |text: &str| -> Result<DocumentMut, Problem> {
        text.parse().map_err(|error: TomlError| {
            let at = error.span().map_or(0, |span| span.start);
            toml_problem::at(path, text, at, error.message())
        })
    };
    let mut document = parse(text)?;
    let (before, after) = (
        parse(&K::text(&old, built_in))?,
        parse(&K::text(new, built_in))?,
    );
    merge(
        document.as_table_mut(),
        Some(before.as_table()),
        after.as_table(),
    );
    Ok(document.to_string())
}

/// Makes the changes from the table `before` to `after` in the table `have`, which is equivalent to
/// `before` and may be spelled differently.
fn merge(have: &mut dyn TableLike, before: Option<&dyn TableLike>, after: &dyn TableLike) {
    let before_keys = before.into_iter().flat_map(TableLike::iter);
    for (key, _) in before_keys.filter(|(key, _)| find(after, key).is_none()) {
        if let Some(key) = find(have, key) {
            have.remove(&key);
        }
    }
    for (key, wanted) in after.iter() {
        let was = before.and_then(|before| before.get(&find(before, key)?));
        if was.is_some_and(|was| same(was, wanted)) {
            continue;
        }
        let Some(item) = find(have, key).and_then(|key| have.get_mut(&key)) else {
            have.insert(key, wanted.clone());
            continue;
        };
        match (item.as_table_like_mut(), wanted.as_table_like()) {
            (Some(have), Some(wanted)) => {
                merge(have, was.and_then(Item::as_table_like), wanted);
            }
            _ => replace(item, wanted),
        }
    }
}

/// The key of `table` that is equivalent to `key`. Names of partitions are keys, and are compared
/// ignoring case; no other keys differ only in case.
fn find(table: &dyn TableLike, key: &str) -> Option<String> {
    let mut keys = table.iter().map(|(other, _)| other);
    let found = keys.find(|other| other.eq_ignore_ascii_case(key));
    found.map(str::to_owned)
}

/// Whether two items are equal. Both were formatted by the same code.
fn same(a: &Item, b: &Item) -> bool {
    match (a.as_table_like(), b.as_table_like()) {
        (Some(a), Some(b)) => {
            let equal = |(key, item): (&str, &Item)| b.get(key).is_some_and(|b| same(item, b));
            a.len() == b.len() && a.iter().all(equal)
        }
        _ => a.to_string().trim() == b.to_string().trim(),
    }
}

/// Replaces a value, and keeps the surrounding whitespace and comments.
fn replace(item: &mut Item, wanted: &Item) {
    let decor = item.as_value().map(|value| value.decor().clone());
    *item = wanted.clone();
    if let (Some(decor), Some(value)) = (decor, item.as_value_mut()) {
        *value.decor_mut() = decor;
    }
}
