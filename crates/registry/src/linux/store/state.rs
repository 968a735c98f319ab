//! What the files said when they were last looked at.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::time::{SystemTime, UNIX_EPOCH};

use hvsock_address::ServiceId;

use super::{Change, format};
use crate::folder::{Folder, Stamp};
use crate::toml_problem::FileProblem;
use crate::{AccessRule, Clash, Defaults, Registration, Registry};

/// The file of what holds where a registration says nothing.
pub(super) const DEFAULTS: &str = "defaults.toml";

/// Stands for [`DEFAULTS`], which is in the folder above, among the names of files with problems.
const ABOVE: &str = "../defaults.toml";

/// Stands for the folder itself among the names of files with problems.
pub(super) const FOLDER: &str = ".";

/// The most problems that are remembered one by one.
pub(super) const MAX_PROBLEMS: usize = 1000;

/// The registrations in force, and what is known of every file.
#[derive(Debug, Default)]
pub(super) struct State {
    /// What is in force: for a file with a problem, what it said before.
    pub registry: Registry,
    /// Every registration's file, in force or not.
    files: HashMap<ServiceId, Seen>,
    /// The files that want what others have.
    waiting: HashMap<Wish, BTreeSet<ServiceId>>,
    /// What a file waits for.
    waits_for: HashMap<ServiceId, Wish>,
    /// What is wrong, by file name; at most [`MAX_PROBLEMS`].
    pub problems: BTreeMap<OsString, FileProblem>,
    /// How many problems there were beyond that in the last look at everything.
    pub more_problems: usize,
    /// The most registrations that are taken in.
    limit: usize,
    /// What holds for these ids while they have no file.
    built_in: BTreeMap<ServiceId, Registration>,
}

/// What one registration has at a time, and others may wait for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Wish {
    /// A name as it is compared.
    Name(String),
    /// A port for guests, which two GUIDs may have as their alias.
    Port(u32),
}

impl Wish {
    /// All that a registration has.
    pub fn all(registration: &Registration) -> Vec<Wish> {
        let port = registration.port_for_guests().map(Wish::Port);
        let name = Wish::Name(registration.name.folded());
        [name].into_iter().chain(port).collect()
    }
}

/// When a file was read and in what state it was then.
#[derive(Clone, Copy, Debug)]
struct Seen {
    stamp: Option<Stamp>,
    at: i64,
}

/// What lies under a file's name.
enum Found {
    Nothing,
    Registration(Box<Registration>),
    Problem(FileProblem),
}

/// What came of looking at files.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// What changed, in order.
    pub changes: Vec<Change>,
    /// Whether additions are left out: at the start everything is one.
    pub starting: bool,
}

impl State {
    pub fn new(limit: usize, built_in: Vec<Registration>) -> Self {
        Self {
            limit,
            built_in: built_in.into_iter().map(|one| (one.id, one)).collect(),
            ..Self::default()
        }
    }

    /// How many registrations in force are built in.
    pub fn built_in_count(&self) -> usize {
        let in_force = |id: &&ServiceId| !self.knows(**id) && self.registry.get(**id).is_some();
        self.built_in.keys().filter(in_force).count()
    }

    /// Takes in what is built in and has no file, once all files have been looked at.
    pub fn load_built_in(&mut self, folder: &Folder, log: &mut Log) {
        let without_file = self.built_in.keys().filter(|id| !self.knows(**id));
        self.load_all(folder, without_file.copied().collect(), log);
    }

    /// What is built in for this id, if no file stands in its place.
    pub fn built_in(&self, id: ServiceId) -> Option<&Registration> {
        self.built_in.get(&id).filter(|_| !self.knows(id))
    }

    /// Whether a file is known to be there.
    pub fn knows(&self, id: ServiceId) -> bool {
        self.files.contains_key(&id)
    }

    /// Whether there is room for one more.
    pub fn has_room(&self) -> bool {
        self.registry.len() < self.limit
    }

    /// Notes that this process wrote a registration's file.
    pub fn wrote(&mut self, id: ServiceId, stamp: Option<Stamp>) {
        self.files.insert(id, Seen { stamp, at: now() });
    }

    /// Looks at every file: reads those that are new, changed, or had a problem.
    pub fn rescan(&mut self, folder: &Folder, log: &mut Log) {
        let names = match folder.names(is_toml) {
            Ok(names) => names,
            Err(error) => {
                let what = format!("cannot be listed: {error}; the last good state stays");
                let problem = FileProblem::whole(folder.path(), what);
                self.problem(OsStr::new(FOLDER), problem, log);
                return;
            }
        };
        self.solved(OsStr::new(FOLDER), log);
        self.more_problems = 0;
        let mut there = HashSet::with_capacity(names.len());
        let mut changed = Vec::new();
        for name in &names {
            let Some(id) = service_id(name) else {
                let problem = FileProblem::whole(&folder.path().join(name), misnamed(name));
                self.problem(name, problem, log);
                continue;
            };
            there.insert(id);
            if !self.is_as_seen(folder, id, name) {
                changed.push(id);
            }
        }
        let known = self.files.keys().copied();
        let mut gone: Vec<ServiceId> = known.filter(|id| !there.contains(id)).collect();
        gone.sort_unstable();
        for id in gone {
            self.load(folder, id, log);
        }
        for id in changed {
            self.load(folder, id, log);
        }
        let solved: Vec<OsString> = self
            .problems
            .keys()
            .filter(|name| is_toml(name) && names.binary_search(name).is_err())
            // What is built in may want what a file has.
            .filter(|name| service_id(name).is_none_or(|id| self.built_in(id).is_none()))
            .cloned()
            .collect();
        for name in solved {
            self.solved(&name, log);
        }
    }

    /// Looks at one file of the folder, whatever its name.
    pub fn look(&mut self, folder: &Folder, name: &OsStr, log: &mut Log) {
        if !is_toml(name) {
            return;
        }
        match service_id(name) {
            Some(id) => self.load(folder, id, log),
            None if matches!(folder.stamp_of(name), Ok(None)) => self.solved(name, log),
            None => {
                let problem = FileProblem::whole(&folder.path().join(name), misnamed(name));
                self.problem(name, problem, log);
            }
        }
    }

    /// Reads one registration's file, and then those that were waiting for what it gave up.
    pub fn load(&mut self, folder: &Folder, id: ServiceId, log: &mut Log) {
        self.load_all(folder, vec![id], log);
    }

    /// Reads the files that wait for what has become free.
    pub fn load_waiting(&mut self, folder: &Folder, freed: &[Wish], log: &mut Log) {
        let waiting = freed.iter().flat_map(|wish| self.waiters(wish)).collect();
        self.load_all(folder, waiting, log);
    }

    fn load_all(&mut self, folder: &Folder, mut next: Vec<ServiceId>, log: &mut Log) {
        while let Some(id) = next.pop() {
            let found = self.find(folder, id);
            let freed = self.apply(folder, id, found, log);
            next.extend(freed.iter().flat_map(|wish| self.waiters(wish)));
        }
    }

    /// Reads what holds where a registration says nothing.
    pub fn load_defaults(&mut self, config: &Folder, log: &mut Log) {
        let name = OsStr::new(ABOVE);
        let path = config.path().join(DEFAULTS);
        let read = config
            .read(OsStr::new(DEFAULTS))
            .and_then(|contents| match contents {
                Some(contents) => format::decode_defaults(&path, &contents.bytes),
                None => Ok(Defaults::default()),
            });
        match read {
            Ok(defaults) => {
                self.solved(name, log);
                self.set_defaults(defaults, log);
            }
            Err(mut problem) => {
                if log.starting {
                    problem
                        .what
                        .push_str("; until it is mended, nobody may use what is left to defaults");
                    self.set_defaults(closed(), log);
                }
                self.problem(name, problem, log);
            }
        }
    }

    /// The files that wait for this, the first one last, since it is taken from the end.
    fn waiters(&self, wish: &Wish) -> Vec<ServiceId> {
        let waiting = self.waiting.get(wish).into_iter().flatten();
        waiting.rev().copied().collect()
    }

    /// Forgets a file that is no longer there.
    fn forget(&mut self, id: ServiceId, log: &mut Log) {
        self.files.remove(&id);
        self.wait_for(id, None);
        self.solved(&file_name(id), log);
    }

    fn is_as_seen(&self, folder: &Folder, id: ServiceId, name: &OsStr) -> bool {
        let Some(seen) = self.files.get(&id) else {
            return false;
        };
        let Some(stamp) = seen.stamp else {
            return false;
        };
        !stamp.is_fresh(seen.at)
            && !self.problems.contains_key(name)
            && matches!(folder.stamp_of(name), Ok(Some(now)) if now == stamp)
    }

    fn find(&mut self, folder: &Folder, id: ServiceId) -> Found {
        let name = file_name(id);
        let path = folder.path().join(&name);
        let at = now();
        match folder.read(&name) {
            Ok(None) => Found::Nothing,
            Ok(Some(contents)) => {
                let stamp = Some(contents.stamp);
                self.files.insert(id, Seen { stamp, at });
                match format::decode(&path, id, &contents.bytes) {
                    Ok(registration) => Found::Registration(Box::new(registration)),
                    Err(problem) => Found::Problem(problem),
                }
            }
            Err(problem) => {
                self.files.insert(id, Seen { stamp: None, at });
                Found::Problem(problem)
            }
        }
    }

    /// Takes in what was found in one file; gives what it gave up.
    fn apply(&mut self, folder: &Folder, id: ServiceId, found: Found, log: &mut Log) -> Vec<Wish> {
        let name = file_name(id);
        let new = match found {
            Found::Nothing => {
                self.forget(id, log);
                match self.built_in(id) {
                    Some(built_in) => built_in.clone(),
                    None => {
                        let Some(old) = self.registry.remove(id) else {
                            return Vec::new();
                        };
                        log.changes.push(Change::Removed(id));
                        return Wish::all(&old);
                    }
                }
            }
            Found::Problem(problem) => {
                self.wait_for(id, None);
                self.problem(&name, problem, log);
                return Vec::new();
            }
            Found::Registration(new) => *new,
        };
        let old = self.registry.get(id);
        let old_name = old.map(|old| old.name.folded());
        if old == Some(&new) {
            self.wait_for(id, None);
            self.solved(&name, log);
            return Vec::new();
        }
        let path = folder.path().join(&name);
        if old.is_none() && !self.has_room() {
            let what = format!("is one too many: at most {} registrations", self.limit);
            self.problem(&name, FileProblem::whole(&path, what), log);
            return Vec::new();
        }
        let new_name = new.name.folded();
        let announced = (!log.starting).then(|| Box::new(new.clone()));
        if let Err(clash) = self.registry.replace(new) {
            let problem = clash.to_string();
            let wish = match clash {
                Clash::Port { port, .. } => Wish::Port(port),
                _ => Wish::Name(new_name),
            };
            self.wait_for(id, Some(wish));
            self.problem(&name, FileProblem::whole(&path, problem), log);
            return Vec::new();
        }
        self.wait_for(id, None);
        self.solved(&name, log);
        log.changes
            .extend(announced.map(|new| match old_name.is_some() {
                true => Change::Updated(new),
                false => Change::Added(new),
            }));
        // The port follows from the id and stays.
        let freed = old_name.filter(|old| *old != new_name);
        freed.map(Wish::Name).into_iter().collect()
    }

    fn wait_for(&mut self, id: ServiceId, wish: Option<Wish>) {
        if let Some(before) = self.waits_for.remove(&id)
            && let Some(waiting) = self.waiting.get_mut(&before)
        {
            waiting.remove(&id);
            if waiting.is_empty() {
                self.waiting.remove(&before);
            }
        }
        if let Some(wish) = wish {
            self.waiting.entry(wish.clone()).or_default().insert(id);
            self.waits_for.insert(id, wish);
        }
    }

    fn set_defaults(&mut self, defaults: Defaults, log: &mut Log) {
        if *self.registry.defaults() != defaults {
            self.registry.set_defaults(defaults.clone());
            log.changes.push(Change::Defaults(defaults));
        }
    }

    /// Notes a problem, and announces it if it is not the one that was known.
    pub fn problem(&mut self, name: &OsStr, problem: FileProblem, log: &mut Log) {
        if self.problems.get(name) == Some(&problem) {
            return;
        }
        if self.problems.len() < MAX_PROBLEMS || self.problems.contains_key(name) {
            self.problems.insert(name.to_owned(), problem.clone());
            log.changes.push(Change::Broken(problem));
        } else {
            self.more_problems += 1;
        }
    }

    /// Notes that nothing is wrong with a file.
    pub fn solved(&mut self, name: &OsStr, log: &mut Log) {
        if let Some(problem) = self.problems.remove(name) {
            log.changes.push(Change::Repaired(problem.path));
        }
    }
}

/// What stands in for defaults that cannot be read: a mistake in them must not open anything.
fn closed() -> Defaults {
    let nobody = || AccessRule {
        users: Some(Vec::new()),
        groups: Some(Vec::new()),
        partitions: Some(Vec::new()),
    };
    Defaults {
        bind: nobody(),
        connect: nobody(),
        allow_wildcard_binds: false,
    }
}

/// The file of a registration.
pub(super) fn file_name(id: ServiceId) -> OsString {
    format!("{id}.toml").into()
}

/// The registration that a file is of, if it is named as such files are.
fn service_id(name: &OsStr) -> Option<ServiceId> {
    let stem = name.to_str()?.strip_suffix(".toml")?;
    let id: ServiceId = stem.parse().ok()?;
    (id.to_string() == stem).then_some(id)
}

/// Editors' and package managers' leavings end otherwise or start with a dot.
fn is_toml(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.ends_with(b".toml") && !name.starts_with(b".")
}

fn misnamed(name: &OsStr) -> String {
    let id = name
        .to_str()
        .and_then(|name| name.strip_suffix(".toml"))
        .and_then(|stem| stem.parse::<ServiceId>().ok());
    match id {
        Some(id) => format!("is not named as registrations are; rename it to {id}.toml"),
        None => "is not named after a GUID, as registrations are, such as \
                 0b2f1f0e-0000-4000-8000-000000000001.toml"
            .to_owned(),
    }
}

/// Seconds since 1970, as the times of files are counted.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
}
