//! The content of the files when they were last read.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::kind::{EntryChange, EntryKind, file_name};
use crate::folder::{Folder, Stamp};
use crate::store::Problem;

/// The key of the problem "the directory is missing" among the names of files with problems.
pub(super) const GONE: &str = "..";

/// The key of the directory itself among the names of files with problems.
const FOLDER: &str = ".";

/// The maximum number of problems that are stored.
const MAX_PROBLEMS: usize = 1000;

/// The entries in force, and the state of every file.
pub(super) struct State<K: EntryKind> {
    /// The entries in force. A file with a problem keeps its last good content here.
    entries: HashMap<K::Key, InForce<K::Entry>>,
    /// The entry that has each claim.
    claims: HashMap<K::Claim, K::Key>,
    /// The files of all entries, in force or not.
    files: HashMap<K::Key, ReadRecord>,
    /// The files that wait for each claim that another entry has.
    waiting: HashMap<K::Claim, BTreeSet<K::Key>>,
    /// The claim that each waiting file waits for.
    waits_for: HashMap<K::Key, K::Claim>,
    /// Problems by file name; at most [`MAX_PROBLEMS`].
    problems: BTreeMap<OsString, Problem>,
    /// The number of further problems in the last full rescan.
    pub more_problems: usize,
    /// The maximum number of entries.
    limit: usize,
    /// The entries in force while their keys have no file.
    built_in: BTreeMap<K::Key, K::Entry>,
    /// The claims of the built-in entries. Nobody else gets them, also not while a built-in one has a
    /// faulty file or another name.
    reserved: HashMap<K::Claim, K::Key>,
    /// The changes that nobody has taken, in order.
    pub changes: Vec<EntryChange<K>>,
    /// Whether this is the initial load, where additions are not recorded.
    starting: bool,
}

/// An entry in force.
struct InForce<E> {
    entry: E,
    built_in: bool,
}

/// The time when a file was read, and its state then.
#[derive(Clone, Copy, Debug)]
struct ReadRecord {
    stamp: Option<Stamp>,
    at: i64,
}

/// The result of reading an entry's file.
enum FileState<E> {
    Missing,
    Entry(E),
    Problem(Problem),
}

impl<K: EntryKind> State<K> {
    pub fn new(limit: usize, built_in: Vec<K::Entry>) -> Self {
        let reserved = built_in.iter().flat_map(|one| {
            let claims = K::claims(one).into_iter();
            claims.map(|claim| (claim, K::key(one)))
        });
        let reserved = reserved.collect();
        let built_in = built_in.into_iter().map(|one| (K::key(&one), one));
        Self {
            entries: HashMap::new(),
            claims: HashMap::new(),
            files: HashMap::new(),
            waiting: HashMap::new(),
            waits_for: HashMap::new(),
            problems: BTreeMap::new(),
            more_problems: 0,
            limit,
            built_in: built_in.collect(),
            reserved,
            changes: Vec::new(),
            starting: false,
        }
    }

    /// The first load. The entries are no changes.
    pub fn load_everything(&mut self, folder: &Folder) {
        self.starting = true;
        self.rescan(folder);
        let without_file = self.built_in.keys().filter(|key| !self.has_file(key));
        self.load_all(folder, without_file.cloned().collect());
        self.starting = false;
        self.changes.clear();
    }

    pub fn get(&self, key: &K::Key) -> Option<&K::Entry> {
        self.entries.get(key).map(|found| &found.entry)
    }

    pub fn iter(&self) -> impl Iterator<Item = &K::Entry> {
        self.entries.values().map(|found| &found.entry)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.values()
    }

    /// The problem of an entry's file.
    pub fn problem_of(&self, key: &K::Key) -> Option<&Problem> {
        self.problems.get(&file_name::<K>(key))
    }

    /// Whether a built-in entry is in force.
    pub fn is_built_in(&self, key: &K::Key) -> bool {
        self.entries.get(key).is_some_and(|found| found.built_in)
    }

    /// The built-in entry with this key, unless a file replaces it.
    pub fn built_in(&self, key: &K::Key) -> Option<&K::Entry> {
        self.built_in.get(key).filter(|_| !self.has_file(key))
    }

    /// The built-in entry with this key, from which a file with this key inherits.
    pub fn base(&self, key: &K::Key) -> Option<&K::Entry> {
        self.built_in.get(key)
    }

    /// Whether a file for this key exists, as last read.
    pub fn has_file(&self, key: &K::Key) -> bool {
        self.files.contains_key(key)
    }

    /// Whether the limit allows one more entry.
    pub fn has_capacity(&self) -> bool {
        self.entries.len() < self.limit
    }

    /// The limit on entries.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether an entry may come into force: nothing else has its claims. The error has the claim,
    /// if it may become free.
    pub fn check(&self, key: &K::Key, new: &K::Entry) -> Result<(), (K::Clash, Option<K::Claim>)> {
        K::check(new).map_err(|clash| (clash, None))?;
        for claim in K::claims(new) {
            let base = self.reserved.get(&claim).filter(|base| *base != key);
            if let Some(base) = base.and_then(|base| self.base(base)) {
                return Err((K::clash(base, new), None));
            }
            let holder = self.claims.get(&claim).filter(|holder| *holder != key);
            if let Some(existing) = holder.and_then(|holder| self.get(holder)) {
                return Err((K::clash(existing, new), Some(claim)));
            }
        }
        Ok(())
    }

    /// Records a file that this process wrote, and the entry in it, which [`check`](Self::check)
    /// allowed. Reads the files that waited for a claim that it released.
    pub fn record_write(
        &mut self,
        folder: &Folder,
        key: &K::Key,
        entry: K::Entry,
        stamp: Option<Stamp>,
    ) {
        self.files
            .insert(key.clone(), ReadRecord { stamp, at: now() });
        let freed = self.put(key, entry, false);
        self.load_claimants(folder, &freed);
    }

    /// Rescans the directory: reads the files that are new, changed, or had a problem.
    pub fn rescan(&mut self, folder: &Folder) {
        let names = match folder.names(is_toml) {
            Ok(names) => names,
            Err(error) => {
                let what = format!("cannot be listed: {error}; the last good state stays in force");
                let problem = Problem::whole(folder.path(), what);
                self.report_problem(OsStr::new(FOLDER), problem);
                return;
            }
        };
        self.clear_problem(OsStr::new(FOLDER));
        self.more_problems = 0;
        let mut present = HashSet::with_capacity(names.len());
        let mut changed = Vec::new();
        for name in &names {
            let key = match key_of::<K>(name) {
                Ok(key) => key,
                Err(what) => {
                    let problem = Problem::whole(&folder.path().join(name), what);
                    self.report_problem(name, problem);
                    continue;
                }
            };
            if !self.is_unchanged(folder, &key, name) {
                changed.push(key.clone());
            }
            present.insert(key);
        }
        let known = self.files.keys();
        let gone = known.filter(|key| !present.contains(key));
        let mut gone: Vec<K::Key> = gone.cloned().collect();
        gone.sort_unstable();
        for key in gone.into_iter().chain(changed) {
            self.load(folder, &key);
        }
        let solved: Vec<OsString> = self
            .problems
            .keys()
            .filter(|name| is_toml(name) && names.binary_search(name).is_err())
            // A built-in entry without a file may have a problem too: a claim may be taken.
            .filter(|name| key_of::<K>(name).map_or(true, |key| self.built_in(&key).is_none()))
            .cloned()
            .collect();
        for name in solved {
            self.clear_problem(&name);
        }
    }

    /// Checks one file of the directory, with any name.
    pub fn check_file(&mut self, folder: &Folder, name: &OsStr) {
        if !is_toml(name) {
            return;
        }
        match key_of::<K>(name) {
            Ok(key) => self.load(folder, &key),
            Err(_) if matches!(folder.stamp_of(name), Ok(None)) => self.clear_problem(name),
            Err(what) => {
                let problem = Problem::whole(&folder.path().join(name), what);
                self.report_problem(name, problem);
            }
        }
    }

    /// Reads one entry's file, then the files that waited for a claim that it released.
    pub fn load(&mut self, folder: &Folder, key: &K::Key) {
        self.load_all(folder, vec![key.clone()]);
    }

    /// Reads the files that wait for these released claims.
    fn load_claimants(&mut self, folder: &Folder, freed: &[K::Claim]) {
        let waiting = freed.iter().flat_map(|claim| self.claimants(claim));
        let waiting = waiting.collect();
        self.load_all(folder, waiting);
    }

    fn load_all(&mut self, folder: &Folder, mut next: Vec<K::Key>) {
        while let Some(key) = next.pop() {
            let found = self.read_file(folder, &key);
            let freed = self.apply(folder, &key, found);
            next.extend(freed.iter().flat_map(|claim| self.claimants(claim)));
        }
    }

    /// The files that wait for a claim, in reverse order, because the caller pops from the end.
    fn claimants(&self, claim: &K::Claim) -> Vec<K::Key> {
        let waiting = self.waiting.get(claim).into_iter().flatten();
        waiting.rev().cloned().collect()
    }

    fn is_unchanged(&self, folder: &Folder, key: &K::Key, name: &OsStr) -> bool {
        let Some(seen) = self.files.get(key) else {
            return false;
        };
        let Some(stamp) = seen.stamp else {
            return false;
        };
        !stamp.is_fresh(seen.at)
            && !self.problems.contains_key(name)
            && matches!(folder.stamp_of(name), Ok(Some(now)) if now == stamp)
    }

    fn read_file(&mut self, folder: &Folder, key: &K::Key) -> FileState<K::Entry> {
        let name = file_name::<K>(key);
        let path = folder.path().join(&name);
        let at = now();
        match folder.read(&name) {
            Ok(None) => FileState::Missing,
            Ok(Some(contents)) => {
                let stamp = Some(contents.stamp);
                self.files.insert(key.clone(), ReadRecord { stamp, at });
                match K::decode(&path, key, &contents.bytes, self.base(key)) {
                    Ok(entry) => FileState::Entry(entry),
                    Err(problem) => FileState::Problem(problem),
                }
            }
            Err(problem) => {
                self.files
                    .insert(key.clone(), ReadRecord { stamp: None, at });
                FileState::Problem(problem)
            }
        }
    }

    /// Applies the result of reading one file. Returns the claims that it released.
    fn apply(
        &mut self,
        folder: &Folder,
        key: &K::Key,
        found: FileState<K::Entry>,
    ) -> Vec<K::Claim> {
        let name = file_name::<K>(key);
        let (new, built_in) = match found {
            FileState::Missing => {
                self.files.remove(key);
                self.wait_for(key, None);
                self.clear_problem(&name);
                match self.built_in(key).cloned() {
                    Some(built_in) => (built_in, true),
                    None => return self.remove(key),
                }
            }
            FileState::Problem(problem) => {
                self.wait_for(key, None);
                self.report_problem(&name, problem);
                return Vec::new();
            }
            FileState::Entry(new) => (new, false),
        };
        let old = self.entries.get(key);
        if old.is_some_and(|old| old.entry == new && old.built_in == built_in) {
            self.wait_for(key, None);
            self.clear_problem(&name);
            return Vec::new();
        }
        let path = folder.path().join(&name);
        if old.is_none() && !self.has_capacity() {
            let what = format!("exceeds the limit of {} {}", self.limit, K::PLURAL);
            self.report_problem(&name, Problem::whole(&path, what));
            return Vec::new();
        }
        if let Err((clash, claim)) = self.check(key, &new) {
            self.wait_for(key, claim);
            self.report_problem(&name, Problem::whole(&path, clash.to_string()));
            return Vec::new();
        }
        self.put(key, new, built_in)
    }

    /// Brings an entry into force, which [`check`](Self::check) allows. Returns the claims that its
    /// old content had and the new one has not.
    fn put(&mut self, key: &K::Key, entry: K::Entry, built_in: bool) -> Vec<K::Claim> {
        self.wait_for(key, None);
        self.clear_problem(&file_name::<K>(key));
        let claims = K::claims(&entry);
        for claim in &claims {
            self.claims.insert(claim.clone(), key.clone());
        }
        let announced = (!self.starting).then(|| Box::new(entry.clone()));
        let old = self
            .entries
            .insert(key.clone(), InForce { entry, built_in });
        let is_new = old.is_none();
        self.changes.extend(announced.map(|entry| match is_new {
            true => EntryChange::Added { entry, built_in },
            false => EntryChange::Updated { entry, built_in },
        }));
        let mut freed = old.map_or_else(Vec::new, |old| K::claims(&old.entry));
        freed.retain(|claim| !claims.contains(claim));
        for claim in &freed {
            self.claims.remove(claim);
        }
        freed
    }

    /// Removes an entry from force. Returns its claims.
    fn remove(&mut self, key: &K::Key) -> Vec<K::Claim> {
        let Some(old) = self.entries.remove(key) else {
            return Vec::new();
        };
        self.changes.push(EntryChange::Removed(key.clone()));
        let freed = K::claims(&old.entry);
        for claim in &freed {
            self.claims.remove(claim);
        }
        freed
    }

    fn wait_for(&mut self, key: &K::Key, claim: Option<K::Claim>) {
        if let Some(before) = self.waits_for.remove(key)
            && let Some(waiting) = self.waiting.get_mut(&before)
        {
            waiting.remove(key);
            if waiting.is_empty() {
                self.waiting.remove(&before);
            }
        }
        if let Some(claim) = claim {
            let waiting = self.waiting.entry(claim.clone()).or_default();
            waiting.insert(key.clone());
            self.waits_for.insert(key.clone(), claim);
        }
    }

    /// Records a problem, and logs a change if it is new.
    pub fn report_problem(&mut self, name: &OsStr, problem: Problem) {
        if self.problems.get(name) == Some(&problem) {
            return;
        }
        if self.problems.len() < MAX_PROBLEMS || self.problems.contains_key(name) {
            self.problems.insert(name.to_owned(), problem.clone());
            self.changes.push(EntryChange::Broken(problem));
        } else {
            self.more_problems += 1;
        }
    }

    /// Records that a file has no problem, and logs a change if it had one.
    pub fn clear_problem(&mut self, name: &OsStr) {
        if let Some(problem) = self.problems.remove(name) {
            self.changes.push(EntryChange::Repaired(problem.path));
        }
    }

    /// The problem of a file that exists and is not in force.
    pub fn problem_in_the_way(&self, key: &K::Key, path: &Path) -> Problem {
        let known = self.problem_of(key).cloned();
        known.unwrap_or_else(|| Problem::whole(path, "already exists and has a problem"))
    }
}

/// The key of a file with this name.
fn key_of<K: EntryKind>(name: &OsStr) -> Result<K::Key, String> {
    match name.to_str().and_then(|name| name.strip_suffix(".toml")) {
        Some(stem) => K::parse_key(stem),
        None => K::parse_key(&name.to_string_lossy()),
    }
}

/// Whether the name has the form `*.toml` and no leading dot. This excludes the backup files of editors
/// and package managers.
fn is_toml(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.ends_with(b".toml") && !name.starts_with(b".")
}

/// The current time in seconds since 1970, the unit of file timestamps.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
}
