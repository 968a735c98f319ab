//! Finds circles among a crate's modules.
//!
//! A module uses another one if its code, or a private `use`, mentions an item *defined* there. A path through
//! re-exports counts for the module that defines the item, so these are no uses:
//! - a re-export (`pub use`, `pub(crate) use`): whoever names the item through it uses its definition;
//! - the declaration of a child (`mod child;`), and a path that ends at a module;
//! - anything in a test (`#[cfg(test)]`), which may use all modules.
//!
//! A file is one module here, with those written inside it. Methods of values are not followed: what a value's
//! methods need is visible where they are defined.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use crate::source::Source;

/// Files that need each other, directly or through others of them.
pub struct Circle {
    pub files: BTreeSet<PathBuf>,
    uses: Vec<Use>,
}

/// How many places are shown for each pair of files.
const SHOWN: usize = 3;

/// One file's use of another one.
#[derive(Clone)]
struct Use {
    from: PathBuf,
    line: usize,
    path: String,
    to: PathBuf,
}

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} modules need each other:", self.files.len())?;
        let mut pairs: BTreeMap<(&Path, &Path), Vec<String>> = BTreeMap::new();
        for found in &self.uses {
            let places = pairs.entry((&found.from, &found.to)).or_default();
            places.push(format!("line {}: {}", found.line, found.path));
        }
        for ((from, to), places) in pairs {
            let (from, to) = (from.display(), to.display());
            write!(f, "  {from} uses {to}: ")?;
            writeln!(f, "{}", places[..places.len().min(SHOWN)].join(", "))?;
        }
        Ok(())
    }
}

/// All circles of the crate, largest first.
pub fn find(source: &Source) -> Vec<Circle> {
    let uses = uses(source);
    let mut targets: BTreeMap<&Path, BTreeSet<&Path>> = BTreeMap::new();
    for found in &uses {
        targets.entry(&found.from).or_default().insert(&found.to);
    }
    let reached: BTreeMap<&Path, BTreeSet<&Path>> = targets
        .keys()
        .map(|from| (*from, reachable(from, &targets)))
        .collect();
    let mut seen = BTreeSet::new();
    let mut circles = Vec::new();
    for (file, all) in &reached {
        let returns = |other: &&&Path| reached.get(**other).is_some_and(|back| back.contains(file));
        let files: BTreeSet<PathBuf> = all
            .iter()
            .filter(returns)
            .map(|&path| path.into())
            .collect();
        if files.is_empty() || !seen.insert(files.clone()) {
            continue;
        }
        let inside = |found: &&Use| files.contains(&found.from) && files.contains(&found.to);
        let uses = uses.iter().filter(inside).cloned().collect();
        circles.push(Circle { files, uses });
    }
    circles.sort_by_key(|circle| std::cmp::Reverse(circle.files.len()));
    circles
}

/// Every file that can be reached from `from` by one step or more.
fn reachable<'a>(
    from: &'a Path,
    targets: &BTreeMap<&'a Path, BTreeSet<&'a Path>>,
) -> BTreeSet<&'a Path> {
    let mut found = BTreeSet::new();
    let mut open = vec![from];
    while let Some(file) = open.pop() {
        for &next in targets.get(file).into_iter().flatten() {
            if found.insert(next) {
                open.push(next);
            }
        }
    }
    found
}

/// One use for each pair of files and path, the first in the file.
fn uses(source: &Source) -> Vec<Use> {
    let mut found = BTreeMap::new();
    let modules = source.modules.iter().enumerate();
    for (index, module) in modules.filter(|(_, module)| !module.is_test) {
        for mention in &module.mentions {
            for definer in definers(source, index, &mention.path) {
                let to = &source.modules[definer].file;
                if *to == module.file {
                    continue;
                }
                let path = mention.path.join("::");
                let line = mention.line;
                let key = (module.file.clone(), to.clone(), path.clone());
                let known: &mut Use = found.entry(key).or_insert_with(|| Use {
                    from: module.file.clone(),
                    line,
                    path,
                    to: to.clone(),
                });
                known.line = known.line.min(line);
            }
        }
    }
    let mut uses: Vec<Use> = found.into_values().collect();
    uses.sort_by_key(|found| found.line);
    uses
}

/// What a path can lead to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    /// A module itself.
    Module(usize),
    /// An item defined in this module.
    Item(usize),
}

/// The modules that define what `path`, written in the module `from`, leads to. None for a path out of the
/// crate, and for a path to a module.
fn definers(source: &Source, from: usize, path: &[String]) -> BTreeSet<usize> {
    resolve(source, from, path, &mut BTreeSet::new())
        .into_iter()
        .filter_map(|target| match target {
            Target::Item(module) => Some(module),
            Target::Module(_) => None,
        })
        .collect()
}

/// A name looked up in a module. Guards against imports that lead to themselves.
type Asked = BTreeSet<(usize, String)>;

fn resolve(source: &Source, from: usize, path: &[String], asked: &mut Asked) -> BTreeSet<Target> {
    let mut targets: BTreeSet<Target> = BTreeSet::new();
    for (place, name) in path.iter().enumerate() {
        targets = match (name.as_str(), place) {
            ("crate", 0) => BTreeSet::from([Target::Module(0)]),
            ("self", 0) => BTreeSet::from([Target::Module(from)]),
            ("super", 0) => parent(source, from),
            ("super", _) => targets
                .iter()
                .flat_map(|target| match *target {
                    Target::Module(module) => parent(source, module),
                    Target::Item(_) => BTreeSet::new(),
                })
                .collect(),
            (_, 0) => look_up(source, from, name, asked),
            _ => targets
                .iter()
                .flat_map(|target| match *target {
                    Target::Module(module) => look_up(source, module, name, asked),
                    // A variant or an associated item.
                    item @ Target::Item(_) => BTreeSet::from([item]),
                })
                .collect(),
        };
        // Types and modules share a namespace, functions do not: what is continued is the module.
        let is_module = |target: &Target| matches!(target, Target::Module(_));
        if place + 1 < path.len() && targets.iter().any(is_module) {
            targets.retain(is_module);
        }
    }
    targets
}

fn parent(source: &Source, module: usize) -> BTreeSet<Target> {
    let parent = source.modules[module].parent;
    parent.map(Target::Module).into_iter().collect()
}

fn look_up(source: &Source, module: usize, name: &str, asked: &mut Asked) -> BTreeSet<Target> {
    let mut targets = BTreeSet::new();
    if !asked.insert((module, name.to_owned())) {
        return targets;
    }
    let here = &source.modules[module];
    if here.items.contains(name) {
        targets.insert(Target::Item(module));
    }
    let children = here.children.iter().filter(|(child, _)| child == name);
    targets.extend(children.map(|&(_, child)| Target::Module(child)));
    if targets.is_empty() {
        for (_, path) in here.imports.iter().filter(|(import, _)| import == name) {
            targets.extend(resolve(source, module, path, asked));
        }
    }
    if targets.is_empty() {
        for glob in &here.globs {
            for target in resolve(source, module, glob, asked) {
                if let Target::Module(other) = target {
                    targets.extend(look_up(source, other, name, asked));
                }
            }
        }
    }
    if targets.is_empty() && here.macro_words.contains(name) {
        targets.insert(Target::Item(module));
    }
    asked.remove(&(module, name.to_owned()));
    targets
}
