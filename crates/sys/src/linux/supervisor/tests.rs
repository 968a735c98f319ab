use std::io::{BufRead as _, BufReader};
use std::thread;
use std::time::{Duration, Instant};

use super::*;

struct Running {
    supervised: Supervised,
    control: Control,
    stdout: BufReader<File>,
}

fn shell(script: &str) -> Result<Running, SpawnError> {
    start_program("sh", &["sh", "-c", script], None)
}

fn start_program(
    path: &str,
    arguments: &[&str],
    input: Option<&OwnedFd>,
) -> Result<Running, SpawnError> {
    let text = |text: &str| CString::new(text).unwrap();
    let path_variable = format!("PATH={}", std::env::var("PATH").unwrap());
    let program = Program {
        path: text(path),
        arguments: arguments.iter().map(|one| text(one)).collect(),
        environment: vec![text(&path_variable), text("A=b c")],
    };
    let (stdout, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let streams = Streams {
        stdin: File::open("/dev/null").unwrap().into(),
        stdout: theirs,
        stderr: io::stderr().as_fd().try_clone_to_owned().unwrap(),
        input,
    };
    let (supervised, control) = start(&program, streams, &Session::default())?;
    Ok(Running {
        supervised,
        control,
        stdout: BufReader::new(stdout.into()),
    })
}

impl Running {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn pids(&mut self, count: usize) -> Vec<i32> {
        (0..count).map(|_| self.line().parse().unwrap()).collect()
    }
}

fn alive(pid: i32) -> bool {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.iter().rposition(|byte| *byte == b')');
    state.is_some_and(|at| !matches!(stat.get(at + 2), None | Some(b'Z' | b'X')))
}

/// Starts processes that leave their parent, group, session and environment, and prints their ids.
const FAMILY: &str = "echo $$; \
    (env -i setsid sh -c 'echo $$; exec sleep 600' &); \
    (env -i setsid sh -c '(setsid sh -c \"trap : HUP TERM; echo \\$\\$; while :; do sleep 600; done\" &) ' &); \
    sleep 600 & echo $!; wait";

#[test]
fn a_program_runs_and_its_end_is_reported() {
    let mut running = shell("echo $A; exit 7").unwrap();
    assert_eq!(running.line(), "b c");
    assert_eq!(running.supervised.exited(), Some(Exit::Status(7)));
    running.control.leave();
    assert!(running.supervised.ended());
    running.supervised.reap();
    let mut running = shell("kill -USR1 $$").unwrap();
    assert_eq!(running.supervised.exited(), Some(Exit::Signal(10)));
}

#[test]
fn a_program_that_does_not_start_is_reported_with_the_step() {
    let error = start_program("/no/such", &["such"], None).map(drop);
    let error = error.unwrap_err();
    assert_eq!(error.step, SpawnStep::Program);
    assert_eq!(error.error.kind(), io::ErrorKind::NotFound);
    let error = start_program("/", &["such"], None).map(drop).unwrap_err();
    assert_eq!(error.step, SpawnStep::Program);
    assert_eq!(error.error.kind(), io::ErrorKind::PermissionDenied);
}

#[test]
fn closing_the_control_ends_processes_that_left_everything_but_their_ancestor() {
    let mut running = shell(FAMILY).unwrap();
    let pids = running.pids(4);
    assert!(pids.iter().all(|pid| alive(*pid)), "{pids:?}");
    drop(running.control);
    assert_eq!(running.supervised.exited(), None);
    assert!(running.supervised.ended());
    running.supervised.reap();
    assert!(!pids.iter().any(|pid| alive(*pid)), "{pids:?}");
}

#[test]
fn processes_that_may_continue_are_left_alone() {
    let mut running = shell("sleep 600 & echo $!").unwrap();
    let pid = running.pids(1)[0];
    assert_eq!(running.supervised.exited(), Some(Exit::Status(0)));
    running.control.leave();
    assert!(running.supervised.ended());
    running.supervised.reap();
    assert!(alive(pid));
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn the_ids_of_a_program_are_its_own_until_its_processes_end() {
    let mut running = shell("exit 0").unwrap();
    assert_eq!(running.supervised.exited(), Some(Exit::Status(0)));
    let pid = running.supervised.program.as_raw_nonzero().get();
    let zombie = parent_of(pid);
    let supervisor = running.supervised.supervisor.as_raw_nonzero().get();
    assert_eq!(zombie, Some(supervisor));
    drop(running.control);
    assert!(running.supervised.ended());
    running.supervised.reap();
    assert_eq!(parent_of(pid), None);
}

#[test]
fn the_end_of_a_killed_supervisor_says_nothing_about_the_processes() {
    let mut running = shell("echo up; exec sleep 600").unwrap();
    assert_eq!(running.line(), "up");
    kill_process(running.supervised.supervisor, Signal::KILL).unwrap();
    assert_eq!(running.supervised.exited(), None);
    assert!(!running.supervised.ended());
    running.supervised.reap();
}

#[test]
fn a_program_inherits_no_descriptor_but_its_streams() {
    let file = File::open("/proc/self/status").unwrap();
    // The shell opens further descriptors with low numbers.
    let leaked = rustix::io::fcntl_dupfd_cloexec(&file, 100).unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let mut running = shell("cd /proc/$$/fd; echo [0-9]*").unwrap();
    let line = running.line();
    let fds: Vec<i32> = line.split(' ').map(|fd| fd.parse().unwrap()).collect();
    assert_eq!(fds[..3], [0, 1, 2]);
    assert!(!fds.contains(&leaked.as_raw_fd()), "{line}");
}

#[test]
fn the_supervisor_keeps_the_input_open_until_it_is_closed() {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let running = start_program("sleep", &["sleep", "600"], Some(&writer)).unwrap();
    drop(writer);
    let ended = thread::spawn(move || File::from(reader).read(&mut [0]).unwrap());
    let deadline = Instant::now() + Duration::from_millis(100);
    while Instant::now() < deadline {
        assert!(!ended.is_finished());
        thread::yield_now();
    }
    running.control.close_input();
    assert_eq!(ended.join().unwrap(), 0);
}

#[test]
fn the_supervisor_keeps_no_shared_memory_of_its_starter() {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, which is not used.
    let mapped = unsafe { mmap_anonymous(ptr::null_mut(), 1 << 20, protection, MapFlags::SHARED) };
    let mapped = mapped.unwrap();
    let shared = |pid: Pid| {
        let maps = std::fs::read(format!("/proc/{}/maps", pid.as_raw_nonzero())).unwrap();
        let lines = maps.split(|byte| *byte == b'\n');
        lines.filter_map(shared_range).count()
    };
    let running = start_program("sleep", &["sleep", "600"], None).unwrap();
    assert_ne!(shared(rustix::process::getpid()), 0);
    assert_eq!(shared(running.supervised.supervisor), 0);
    // SAFETY: nothing uses it.
    unsafe { munmap(mapped, 1 << 20) }.unwrap();

    assert_eq!(
        shared_range(b"7f00-7f10 rw-s 0 00:01 5 /memfd:x (deleted)"),
        Some((0x7f00, 0x7f10))
    );
    for line in ["7f00-7f10 rw-p 0 00:01 5", "7f00 rw-s", "x-y rw-s", ""] {
        assert_eq!(shared_range(line.as_bytes()), None, "{line}");
    }
}

#[test]
fn the_parent_is_parsed_after_any_name() {
    assert_eq!(parent_in(b"8 (sh) S 17 7 6 0 -1"), Some(17));
    assert_eq!(parent_in(b"8 (a) S 9 9) Z 1 7 6 0 -1"), Some(1));
    for invalid in ["", "8 sh S 1", "8 (sh)", "8 (sh) S", "8 (sh) S x 6"] {
        assert_eq!(parent_in(invalid.as_bytes()), None, "{invalid}");
    }
    let mut path = [0; 32];
    assert_eq!(
        stat_path(i32::MAX, &mut path),
        Some(c"/proc/2147483647/stat")
    );
}
