//! A service that is kept running, without I/O: events in, actions out.

use std::time::{Duration, Instant};

use hvsock_sys::init::Change;

/// The most stored descriptors: no more can be passed to a program (`hvsock_sys::activation`).
pub const MAX_STORED: usize = 1024;

/// How long a service may take to end.
const GRACE: Duration = Duration::from_secs(90);
/// How long one that did not say that it lives has for a report of that.
const ABORT: Duration = Duration::from_secs(10);
/// A service that ran for this long is started again without a delay.
const LONG_RUN: Duration = Duration::from_secs(10);
const FIRST_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(10);

/// A service, and the descriptors that are stored for it.
#[derive(Debug)]
pub struct Service<D> {
    stored: Vec<(String, D)>,
    main: Option<Main>,
    /// It has been ready once: its end is no fault of its arguments.
    was_ready: bool,
    is_stopping: bool,
    /// When to start it, if it does not run.
    start_at: Option<Instant>,
    delay: Duration,
    /// How often it has to say that it lives.
    watchdog: Option<Duration>,
}

/// The main process.
#[derive(Debug)]
struct Main {
    pid: u32,
    since: Instant,
    is_ready: bool,
    /// When it has said last that it lives.
    alive: Option<Instant>,
    /// When it is killed.
    kill_at: Option<Instant>,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Start it, with all that is stored; then [`Service::started`].
    Start,
    /// Send a signal to this process.
    Signal(u32, i32),
    /// Log this.
    Warn(String),
    /// The keeper ends, with this status.
    End(u8),
}

impl<D> Service<D> {
    pub fn new(watchdog: Option<Duration>, now: Instant) -> Self {
        Self {
            stored: Vec::new(),
            main: None,
            was_ready: false,
            is_stopping: false,
            start_at: Some(now),
            delay: FIRST_DELAY,
            watchdog,
        }
    }

    /// What is stored, by names.
    pub fn stored(&self) -> impl Iterator<Item = (&str, &D)> {
        self.stored.iter().map(|(name, one)| (name.as_str(), one))
    }

    /// It was started.
    pub fn started(&mut self, pid: u32, now: Instant) {
        self.start_at = None;
        self.main = Some(Main::new(pid, now));
    }

    /// Cannot be started.
    pub fn not_started(&mut self, why: &str, now: Instant) -> Vec<Action> {
        let warning = Action::Warn(format!("cannot start the service: {why}"));
        let mut actions = vec![warning];
        actions.extend(self.start_later(1, now));
        actions
    }

    /// A process has said something (`sd_notify(3)`).
    pub fn notified(&mut self, state: &str, descriptors: Vec<D>, now: Instant) -> Vec<Action> {
        let (mut store, mut remove, mut name) = (false, false, None);
        let mut actions = Vec::new();
        for line in state.lines() {
            let (key, value) = line.split_once('=').unwrap_or((line, ""));
            match (key, value) {
                ("READY", "1") => {
                    self.was_ready = true;
                    if let Some(main) = &mut self.main {
                        main.is_ready = true;
                        main.alive = Some(now);
                    }
                }
                ("WATCHDOG", "1") => {
                    if let Some(main) = &mut self.main {
                        main.alive = Some(now);
                    }
                }
                ("WATCHDOG", "trigger") => actions.extend(self.abort(now)),
                ("MAINPID", pid) => {
                    if let Ok(pid) = pid.parse() {
                        let mut main = Main::new(pid, now);
                        main.is_ready = true;
                        main.alive = Some(now);
                        self.main = Some(main);
                    }
                }
                ("FDSTORE", "1") => store = true,
                ("FDSTOREREMOVE", "1") => remove = true,
                ("FDNAME", value) => name = Some(value.to_owned()),
                // The descriptors of BARRIER=1 are closed, which is the answer.
                _ => {}
            }
        }
        if remove {
            self.stored.retain(|(one, _)| Some(one) != name.as_ref());
        } else if store {
            let name = name.unwrap_or_else(|| "stored".into());
            for descriptor in descriptors {
                if self.stored.len() >= MAX_STORED {
                    let what = format!("a descriptor is not stored: there are {MAX_STORED}");
                    actions.push(Action::Warn(what));
                    break;
                }
                self.stored.push((name.clone(), descriptor));
            }
        }
        actions
    }

    /// A process has ended, or stopped.
    pub fn changed(&mut self, pid: u32, change: Change, now: Instant) -> Vec<Action> {
        let (status, how) = match change {
            Change::Exited(status) => (status, format!("has ended with status {status}")),
            Change::Killed(signal) => {
                let status = u8::try_from(128 + signal).unwrap_or(u8::MAX);
                (status, format!("was ended by signal {signal}"))
            }
            Change::Stopped(_) | Change::Continued => return Vec::new(),
        };
        let Some(main) = self.main.take_if(|main| main.pid == pid) else {
            return Vec::new();
        };
        if self.is_stopping {
            return vec![Action::End(0)];
        }
        if now.duration_since(main.since) >= LONG_RUN {
            self.delay = FIRST_DELAY;
        }
        if status == 0 && self.stored.is_empty() {
            return vec![Action::End(0)];
        }
        // What it has stored is for the next one. One that was not ready might store it for ever.
        if status == 0 && main.is_ready {
            self.start_at = Some(now);
            return Vec::new();
        }
        let mut actions = vec![Action::Warn(format!("the service {how}"))];
        actions.extend(self.start_later(status, now));
        actions
    }

    fn start_later(&mut self, status: u8, now: Instant) -> Option<Action> {
        if !self.was_ready {
            return Some(Action::End(status.max(1)));
        }
        self.start_at = Some(now + self.delay);
        self.delay = (self.delay * 2).min(MAX_DELAY);
        None
    }

    /// The keeper is to end.
    pub fn stop(&mut self, signal: i32, now: Instant) -> Vec<Action> {
        self.is_stopping = true;
        self.start_at = None;
        match &mut self.main {
            None => vec![Action::End(0)],
            Some(main) => {
                main.kill_at.get_or_insert(now + GRACE);
                vec![Action::Signal(main.pid, signal)]
            }
        }
    }

    /// Passes a signal on.
    pub fn signal(&self, signal: i32) -> Option<Action> {
        let main = self.main.as_ref()?;
        Some(Action::Signal(main.pid, signal))
    }

    /// When [`expire`](Self::expire) has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let main = self.main.as_ref();
        let kill = main.and_then(|main| main.kill_at);
        let heartbeat = main.and_then(|main| main.heartbeat_until(self.watchdog));
        [self.start_at, kill, heartbeat].into_iter().flatten().min()
    }

    /// Acts on what is due.
    pub fn expire(&mut self, now: Instant) -> Vec<Action> {
        if self.start_at.is_some_and(|at| at <= now) {
            self.start_at = None;
            return vec![Action::Start];
        }
        let watchdog = self.watchdog;
        let Some(main) = &mut self.main else {
            return Vec::new();
        };
        if main.kill_at.is_some_and(|at| at <= now) {
            main.kill_at = Some(now + GRACE);
            return vec![Action::Signal(main.pid, kill_signal())];
        }
        if main.heartbeat_until(watchdog).is_some_and(|at| at <= now) {
            return self.abort(now);
        }
        Vec::new()
    }

    /// Ends a main process that does not work.
    fn abort(&mut self, now: Instant) -> Vec<Action> {
        let Some(main) = &mut self.main else {
            return Vec::new();
        };
        main.alive = None;
        main.kill_at.get_or_insert(now + ABORT);
        vec![
            Action::Warn("the service does not say that it lives".into()),
            Action::Signal(main.pid, abort_signal()),
        ]
    }
}

impl Main {
    fn new(pid: u32, now: Instant) -> Self {
        Self {
            pid,
            since: now,
            is_ready: false,
            alive: None,
            kill_at: None,
        }
    }

    /// Until when it has to say that it lives.
    fn heartbeat_until(&self, watchdog: Option<Duration>) -> Option<Instant> {
        Some(self.alive? + watchdog?)
    }
}

fn kill_signal() -> i32 {
    rustix::process::Signal::KILL.as_raw()
}

fn abort_signal() -> i32 {
    rustix::process::Signal::ABORT.as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERRUPT: i32 = 2;

    fn ready(watchdog: Option<Duration>) -> (Service<u32>, Instant) {
        let now = Instant::now();
        let mut service = Service::new(watchdog, now);
        assert_eq!(service.expire(now), [Action::Start]);
        service.started(10, now);
        assert_eq!(service.expire(now), []);
        assert_eq!(service.notified("READY=1", vec![], now), []);
        (service, now)
    }

    fn warns(actions: &[Action]) -> bool {
        matches!(actions, [Action::Warn(_)])
    }

    #[test]
    fn what_is_stored_is_passed_to_the_next_process_until_it_is_removed() {
        let (mut service, now) = ready(None);
        service.notified("FDSTORE=1\nFDNAME=a\nFDPOLL=0", vec![1, 2], now);
        service.notified("FDSTORE=1", vec![3], now);
        service.notified("BARRIER=1", vec![4], now);
        assert_eq!(service.changed(10, Change::Exited(0), now), []);
        assert_eq!(service.expire(now), [Action::Start]);
        service.started(11, now);
        let stored: Vec<_> = service.stored().map(|(name, fd)| (name, *fd)).collect();
        assert_eq!(stored, [("a", 1), ("a", 2), ("stored", 3)]);
        service.notified("FDSTOREREMOVE=1\nFDNAME=a", vec![], now);
        assert_eq!(service.stored().count(), 1);
        let many = service.notified("FDSTORE=1", vec![0; MAX_STORED], now);
        assert!(warns(&many), "{many:?}");
        assert_eq!(service.stored().count(), MAX_STORED);
    }

    #[test]
    fn a_process_that_ends_by_itself_is_not_started_again_and_one_that_dies_is_with_a_growing_delay()
     {
        let (mut service, mut now) = ready(None);
        let mut pid = 10;
        let mut delays = Vec::new();
        for _ in 0..9 {
            let died = service.changed(pid, Change::Killed(9), now);
            assert!(warns(&died), "{died:?}");
            let at = service.deadline().unwrap();
            delays.push(at.duration_since(now).as_millis());
            now = at;
            assert_eq!(service.expire(now), [Action::Start]);
            pid += 1;
            service.started(pid, now);
        }
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000]);
        now += LONG_RUN;
        service.changed(pid, Change::Exited(3), now);
        assert_eq!(service.deadline(), Some(now + FIRST_DELAY));
        service.expire(now + FIRST_DELAY);
        service.started(pid + 1, now);
        // The end of another process is not that of the service.
        assert_eq!(service.changed(7, Change::Exited(0), now), []);
        assert_eq!(
            service.changed(pid + 1, Change::Exited(0), now),
            [Action::End(0)]
        );
    }

    #[test]
    fn a_process_that_never_was_ready_ends_the_keeper_with_its_status() {
        for (change, status) in [(Change::Exited(2), 2), (Change::Killed(9), 137)] {
            let now = Instant::now();
            let mut service = Service::<u32>::new(None, now);
            service.expire(now);
            service.started(10, now);
            let ended = service.changed(10, change, now);
            assert!(ended.contains(&Action::End(status)), "{ended:?}");
        }
        let now = Instant::now();
        let mut service = Service::<u32>::new(None, now);
        service.expire(now);
        assert!(
            service
                .not_started("it is missing", now)
                .contains(&Action::End(1))
        );
    }

    #[test]
    fn another_process_can_be_the_main_one_after_an_upgrade() {
        let (mut service, now) = ready(None);
        service.notified("MAINPID=20\nREADY=1", vec![], now);
        assert_eq!(service.changed(10, Change::Exited(0), now), []);
        assert_eq!(service.signal(1), Some(Action::Signal(20, 1)));
        assert!(warns(&service.changed(20, Change::Killed(9), now)));
    }

    #[test]
    fn a_stop_has_a_time() {
        let (mut service, now) = ready(None);
        assert_eq!(
            service.stop(INTERRUPT, now),
            [Action::Signal(10, INTERRUPT)]
        );
        assert_eq!(service.expire(now + GRACE), [Action::Signal(10, 9)]);
        assert_eq!(
            service.changed(10, Change::Killed(9), now),
            [Action::End(0)]
        );
        let mut service = Service::<u32>::new(None, now);
        assert_eq!(service.stop(INTERRUPT, now), [Action::End(0)]);
    }

    #[test]
    fn a_process_that_does_not_say_that_it_lives_is_ended() {
        let limit = Duration::from_secs(5);
        let (mut service, now) = ready(Some(limit));
        let later = now + limit / 2;
        service.notified("WATCHDOG=1", vec![], later);
        assert_eq!(service.deadline(), Some(later + limit));
        assert_eq!(service.expire(now + limit), []);
        let due = later + limit;
        let aborted = service.expire(due);
        assert!(aborted.contains(&Action::Signal(10, 6)), "{aborted:?}");
        assert_eq!(service.expire(due), []);
        assert_eq!(service.expire(due + ABORT), [Action::Signal(10, 9)]);
        assert!(warns(&service.changed(10, Change::Killed(9), due)));
        let (mut service, now) = ready(Some(limit));
        let aborted = service.notified("WATCHDOG=trigger", vec![], now);
        assert!(aborted.contains(&Action::Signal(10, 6)), "{aborted:?}");
    }
}
