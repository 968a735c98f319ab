//! The thread that is not confined. It starts threads and programs for those that are, and logs what they were denied.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use hvsock_sys::event::Event;
use hvsock_sys::poll;
use hvsock_sys::seccomp::{denials, names};
use rustix::event::{PollFd, PollFlags};

use super::kind::Kind;

type Task = Box<dyn FnOnce() + Send>;

struct Starter {
    tasks: Sender<Task>,
    event: &'static Event,
}

thread_local! {
    static IS_OUTSIDE: Cell<bool> = const { Cell::new(false) };
}

static STARTER: OnceLock<Starter> = OnceLock::new();

/// How long to wait before more is logged, or when a descriptor cannot be polled.
const PAUSE: Duration = Duration::from_millis(100);

/// Starts the thread, once.
pub(super) fn start() -> io::Result<()> {
    if STARTER.get().is_some() {
        return Ok(());
    }
    let event = denials::event()?;
    let (tasks, queue) = mpsc::channel();
    std::thread::Builder::new()
        .name("hvsock-starter".into())
        .spawn(move || run(&queue, event))?;
    // One that another thread has started at the same time is used, and this one waits for nothing.
    let _ = STARTER.set(Starter { tasks, event });
    Ok(())
}

fn run(queue: &Receiver<Task>, event: &Event) {
    IS_OUTSIDE.set(true);
    let mut logged = HashMap::new();
    loop {
        let fd = event.as_fd();
        if poll::wait(&mut [PollFd::new(&fd, PollFlags::IN)], None).is_err() {
            std::thread::sleep(PAUSE);
        }
        event.clear();
        while let Ok(task) = queue.try_recv() {
            // Who waits for it learns of a panic by the result, which is missing.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(task));
        }
        log_denials(&mut logged);
    }
}

/// Logs each kind of denied call at its first and at each tenfold number.
fn log_denials(logged: &mut HashMap<(u16, u32), u64>) {
    for denial in denials::list().0 {
        let (kind, number) = (Kind::name_of(denial.filter), denial.syscall);
        let next = logged.entry((denial.filter, number)).or_insert(1);
        if denial.count >= *next {
            *next = denial.count.saturating_mul(10);
            tracing::error!(
                kind,
                call = names::of(number).unwrap_or("unknown"),
                number,
                count = denial.count,
                "a thread was denied a system call that its allow list lacks"
            );
        }
    }
}

/// Calls a function outside the confinement of this thread, and waits for it. What it starts is not confined by this
/// thread. Without confinement it is an ordinary call.
///
/// # Panics
///
/// If the function does.
pub fn outside<T: Send + 'static>(function: impl FnOnce() -> T + Send + 'static) -> T {
    // Whether a thread has inherited a confinement it does not know.
    let Some(starter) = STARTER.get().filter(|_| !IS_OUTSIDE.get()) else {
        return function();
    };
    let (done, result) = mpsc::sync_channel(1);
    let task = move || {
        let _ = done.send(function());
    };
    let sent = starter.tasks.send(Box::new(task));
    sent.unwrap_or_else(|_| unreachable!("the thread never ends"));
    starter.event.set();
    match result.recv() {
        Ok(value) => value,
        Err(_) => panic!("a function outside the confinement has panicked"),
    }
}
