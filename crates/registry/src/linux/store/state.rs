//! The content of the files when they were last read.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::time::{SystemTime, UNIX_EPOCH};

use hvsock_address::ServiceId;

use super::{Change, format};
use crate::folder::{Folder, Stamp};
use crate::toml_problem::FileProblem;
use crate::{AccessRule, Clash, Defaults, Registration, Registry};

/// The file with the settings for what a registration leaves out.
pub(super) const DEFAULTS: &str = "defaults.toml";

/// The key of [`DEFAULTS`], which is in the parent directory, among the names of files with problems.
const ABOVE: &str = "../defaults.toml";

/// The key of the directory itself among the names of files with problems.
pub(super) const FOLDER: &str = ".";

/// The maximum number of problems that are stored.
pub(super) const MAX_PROBLEMS: usize = 1000;

/// The registrations in force, and the state of every file.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The registrations in force. A file with a problem keeps its last good content here.
    pub registry: Registry,
    /// The files of all registrations, in force or not.
    files: HashMap<ServiceId, ReadRecord>,
    /// The files that wait for each name or port that another file has.
    claims: HashMap<Claim, BTreeSet<ServiceId>>,
    /// The name or port that each waiting file waits for.
    pending_claim: HashMap<ServiceId, Claim>,
    /// Problems by file name; at most [`MAX_PROBLEMS`].
    pub problems: BTreeMap<OsString, FileProblem>,
    /// The number of further problems in the last full rescan.
    pub more_problems: usize,
    /// The maximum number of registrations.
    limit: usize,
    /// The registrations in force while their ids have no file.
    built_in: BTreeMap<ServiceId, Registration>,
}

/// A unique key of a registration, which other files may wait for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Claim {
    /// A case-folded name.
    Name(String),
    /// A port for guests. Two GUIDs may have the same alias port.
    Port(u32),
}

impl Claim {
    /// All claims of a registration.
    pub fn all(registration: &Registration) -> Vec<Claim> {
        let port = registration.port_for_guests().map(Claim::Port);
        let name = Claim::Name(registration.name.folded());
        [name].into_iter().chain(port).collect()
    }
}

/// The time when a file was read, and its state then.
#[derive(Clone, Copy, Debug)]
struct ReadRecord {
    stamp: Option<Stamp>,
    at: i64,
}

/// The result of reading a registration's file.
enum FileState {
    Missing,
    Registration(Box<Registration>),
    Problem(FileProblem),
}

/// The changes found while reading files.
#[derive(Debug, Default)]
pub(super) struct ChangeLog {
    /// The changes, in order.
    pub changes: Vec<Change>,
    /// Whether this is the initial load, where additions are not recorded.
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

    /// The number of built-in registrations in force.
    pub fn built_in_count(&self) -> usize {
        let in_force = |id: &&ServiceId| !self.has_file(**id) && self.registry.get(**id).is_some();
        self.built_in.keys().filter(in_force).count()
    }

    /// Loads the built-in registrations without a file. Call it after all files are loaded.
    pub fn load_built_in(&mut self, folder: &Folder, log: &mut ChangeLog) {
        let without_file = self.built_in.keys().filter(|id| !self.has_file(**id));
        self.load_all(folder, without_file.copied().collect(), log);
    }

    /// The built-in registration with this id, unless a file replaces it.
    pub fn built_in(&self, id: ServiceId) -> Option<&Registration> {
        self.built_in.get(&id).filter(|_| !self.has_file(id))
    }

    /// Whether a file for this id exists, as last read.
    pub fn has_file(&self, id: ServiceId) -> bool {
        self.files.contains_key(&id)
    }

    /// Whether the limit allows one more registration.
    pub fn has_capacity(&self) -> bool {
        self.registry.len() < self.limit
    }

    /// Records that this process wrote a registration's file.
    pub fn record_write(&mut self, id: ServiceId, stamp: Option<Stamp>) {
        self.files.insert(id, ReadRecord { stamp, at: now() });
    }

    /// Rescans the directory: reads the files that are new, changed, or had a problem.
    pub fn rescan(&mut self, folder: &Folder, log: &mut ChangeLog) {
        let names = match folder.names(is_toml) {
            Ok(names) => names,
            Err(error) => {
                let what = format!("cannot be listed: {error}; the last good state stays in force");
                let problem = FileProblem::whole(folder.path(), what);
                self.report_problem(OsStr::new(FOLDER), problem, log);
                return;
            }
        };
        self.clear_problem(OsStr::new(FOLDER), log);
        self.more_problems = 0;
        let mut present = HashSet::with_capacity(names.len());
        let mut changed = Vec::new();
        for name in &names {
            let Some(id) = service_id(name) else {
                let problem = FileProblem::whole(&folder.path().join(name), misnamed(name));
                self.report_problem(name, problem, log);
                continue;
            };
            present.insert(id);
            if !self.is_unchanged(folder, id, name) {
                changed.push(id);
            }
        }
        let known = self.files.keys().copied();
        let mut gone: Vec<ServiceId> = known.filter(|id| !present.contains(id)).collect();
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
            // A built-in registration without a file may have a problem too: its name may be taken.
            .filter(|name| service_id(name).is_none_or(|id| self.built_in(id).is_none()))
            .cloned()
            .collect();
        for name in solved {
            self.clear_problem(&name, log);
        }
    }

    /// Checks one file of the directory, with any name.
    pub fn check_file(&mut self, folder: &Folder, name: &OsStr, log: &mut ChangeLog) {
        if !is_toml(name) {
            return;
        }
        match service_id(name) {
            Some(id) => self.load(folder, id, log),
            None if matches!(folder.stamp_of(name), Ok(None)) => self.clear_problem(name, log),
            None => {
                let problem = FileProblem::whole(&folder.path().join(name), misnamed(name));
                self.report_problem(name, problem, log);
            }
        }
    }

    /// Reads one registration's file, then the files that waited for a name or port that it released.
    pub fn load(&mut self, folder: &Folder, id: ServiceId, log: &mut ChangeLog) {
        self.load_all(folder, vec![id], log);
    }

    /// Reads the files that wait for these released claims.
    pub fn load_claimants(&mut self, folder: &Folder, freed: &[Claim], log: &mut ChangeLog) {
        let waiting = freed
            .iter()
            .flat_map(|claim| self.claimants(claim))
            .collect();
        self.load_all(folder, waiting, log);
    }

    fn load_all(&mut self, folder: &Folder, mut next: Vec<ServiceId>, log: &mut ChangeLog) {
        while let Some(id) = next.pop() {
            let found = self.read_file(folder, id);
            let freed = self.apply(folder, id, found, log);
            next.extend(freed.iter().flat_map(|claim| self.claimants(claim)));
        }
    }

    /// Reads `defaults.toml`.
    pub fn load_defaults(&mut self, config: &Folder, log: &mut ChangeLog) {
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
                self.clear_problem(name, log);
                self.set_defaults(defaults, log);
            }
            Err(mut problem) => {
                if log.starting {
                    problem
                        .what
                        .push_str("; until it is corrected, the defaults deny all access");
                    self.set_defaults(deny_all(), log);
                }
                self.report_problem(name, problem, log);
            }
        }
    }

    /// The files that wait for a claim, in reverse order, because the caller pops from the end.
    fn claimants(&self, claim: &Claim) -> Vec<ServiceId> {
        let waiting = self.claims.get(claim).into_iter().flatten();
        waiting.rev().copied().collect()
    }

    /// Removes the state of a file that no longer exists.
    fn forget_file(&mut self, id: ServiceId, log: &mut ChangeLog) {
        self.files.remove(&id);
        self.set_claim(id, None);
        self.clear_problem(&file_name(id), log);
    }

    fn is_unchanged(&self, folder: &Folder, id: ServiceId, name: &OsStr) -> bool {
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

    fn read_file(&mut self, folder: &Folder, id: ServiceId) -> FileState {
        let name = file_name(id);
        let path = folder.path().join(&name);
        let at = now();
        match folder.read(&name) {
            Ok(None) => FileState::Missing,
            Ok(Some(contents)) => {
                let stamp = Some(contents.stamp);
                self.files.insert(id, ReadRecord { stamp, at });
                match format::decode(&path, id, &contents.bytes) {
                    Ok(registration) => FileState::Registration(Box::new(registration)),
                    Err(problem) => FileState::Problem(problem),
                }
            }
            Err(problem) => {
                self.files.insert(id, ReadRecord { stamp: None, at });
                FileState::Problem(problem)
            }
        }
    }

    /// Applies the result of reading one file. Returns the claims that it released.
    fn apply(
        &mut self,
        folder: &Folder,
        id: ServiceId,
        found: FileState,
        log: &mut ChangeLog,
    ) -> Vec<Claim> {
        let name = file_name(id);
        let new = match found {
            FileState::Missing => {
                self.forget_file(id, log);
                match self.built_in(id) {
                    Some(built_in) => built_in.clone(),
                    None => {
                        let Some(old) = self.registry.remove(id) else {
                            return Vec::new();
                        };
                        log.changes.push(Change::Removed(id));
                        return Claim::all(&old);
                    }
                }
            }
            FileState::Problem(problem) => {
                self.set_claim(id, None);
                self.report_problem(&name, problem, log);
                return Vec::new();
            }
            FileState::Registration(new) => *new,
        };
        let old = self.registry.get(id);
        let old_name = old.map(|old| old.name.folded());
        if old == Some(&new) {
            self.set_claim(id, None);
            self.clear_problem(&name, log);
            return Vec::new();
        }
        let path = folder.path().join(&name);
        if old.is_none() && !self.has_capacity() {
            let what = format!("exceeds the limit of {} registrations", self.limit);
            self.report_problem(&name, FileProblem::whole(&path, what), log);
            return Vec::new();
        }
        let new_name = new.name.folded();
        let announced = (!log.starting).then(|| Box::new(new.clone()));
        if let Err(clash) = self.registry.replace(new) {
            let problem = clash.to_string();
            let claim = match clash {
                Clash::Port { port, .. } => Claim::Port(port),
                _ => Claim::Name(new_name),
            };
            self.set_claim(id, Some(claim));
            self.report_problem(&name, FileProblem::whole(&path, problem), log);
            return Vec::new();
        }
        self.set_claim(id, None);
        self.clear_problem(&name, log);
        log.changes
            .extend(announced.map(|new| match old_name.is_some() {
                true => Change::Updated(new),
                false => Change::Added(new),
            }));
        // The port follows from the id, so only the name can be released.
        let freed = old_name.filter(|old| *old != new_name);
        freed.map(Claim::Name).into_iter().collect()
    }

    fn set_claim(&mut self, id: ServiceId, claim: Option<Claim>) {
        if let Some(before) = self.pending_claim.remove(&id)
            && let Some(waiting) = self.claims.get_mut(&before)
        {
            waiting.remove(&id);
            if waiting.is_empty() {
                self.claims.remove(&before);
            }
        }
        if let Some(claim) = claim {
            self.claims.entry(claim.clone()).or_default().insert(id);
            self.pending_claim.insert(id, claim);
        }
    }

    fn set_defaults(&mut self, defaults: Defaults, log: &mut ChangeLog) {
        if *self.registry.defaults() != defaults {
            self.registry.set_defaults(defaults.clone());
            log.changes.push(Change::Defaults(defaults));
        }
    }

    /// Records a problem, and logs a change if it is new.
    pub fn report_problem(&mut self, name: &OsStr, problem: FileProblem, log: &mut ChangeLog) {
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

    /// Records that a file has no problem, and logs a change if it had one.
    pub fn clear_problem(&mut self, name: &OsStr, log: &mut ChangeLog) {
        if let Some(problem) = self.problems.remove(name) {
            log.changes.push(Change::Repaired(problem.path));
        }
    }
}

/// Replaces defaults that cannot be read at startup: an error in the file must not grant access.
fn deny_all() -> Defaults {
    let empty = || AccessRule {
        users: Some(Vec::new()),
        groups: Some(Vec::new()),
        partitions: Some(Vec::new()),
    };
    Defaults {
        bind: empty(),
        connect: empty(),
        allow_wildcard_binds: false,
    }
}

/// The file name of a registration.
pub(super) fn file_name(id: ServiceId) -> OsString {
    format!("{id}.toml").into()
}

/// The id in the file name of a registration. `None` if the name has another form.
fn service_id(name: &OsStr) -> Option<ServiceId> {
    let stem = name.to_str()?.strip_suffix(".toml")?;
    let id: ServiceId = stem.parse().ok()?;
    (id.to_string() == stem).then_some(id)
}

/// Whether the name has the form `*.toml` and no leading dot. This excludes the backup files of editors
/// and package managers.
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
        Some(id) => {
            format!("is not the canonical name of this registration; rename it to {id}.toml")
        }
        None => "is not named after a GUID, such as 0b2f1f0e-0000-4000-8000-000000000001.toml"
            .to_owned(),
    }
}

/// The current time in seconds since 1970, the unit of file timestamps.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
}
