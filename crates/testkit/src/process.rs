//! Child processes of tests: they end when the test does, and every wait for one has a bound.

use std::io::{self, Read, Write};
use std::process::{
    Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio,
};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// How often a wait looks again.
const LOOK: Duration = Duration::from_millis(5);

/// A child process that is killed and reaped when this is dropped.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Starts one.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
        Ok(Self(child))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Its stdin, if the command asked for a pipe and nobody took it yet. Likewise below.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.0.stdin.take()
    }

    /// Its stdout.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.0.stdout.take()
    }

    /// Its stderr.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.0.stderr.take()
    }

    /// Ends it by `SIGKILL`, of which it has no notice, and waits for the end.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.0.kill()?;
        self.0.wait()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.0.try_wait()
    }

    /// Waits for its end; after `limit` the error is `TimedOut` and it runs on.
    pub fn wait(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("process {} still runs after {limit:?}", self.id()),
                ));
            }
            thread::sleep(LOOK);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// Runs a command to its end with `input` on its stdin, and gives what it printed. After `limit`
/// it is killed, and the error, `TimedOut`, quotes what it had printed.
///
/// A pipe that the command leaves open in a process of its own does not prolong the wait by more
/// than a second.
pub fn output(command: &mut Command, input: &[u8], limit: Duration) -> io::Result<Output> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut running = Running::start(command)?;
    feed(&mut running, input);
    let stdout = running.take_stdout().map(Gathered::from);
    let stderr = running.take_stderr().map(Gathered::from);
    let ended = running.wait(limit);
    if ended.is_err() {
        running.kill()?;
    }
    let patience = Instant::now() + Duration::from_secs(1);
    let [stdout, stderr] =
        [stdout, stderr].map(|gathered| gathered.map_or(Vec::new(), |all| all.finish(patience)));
    match ended {
        Ok(status) => Ok(Output {
            status,
            stdout,
            stderr,
        }),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!(
                "{error}\nstdout: {}\nstderr: {}",
                String::from_utf8_lossy(&stdout),
                String::from_utf8_lossy(&stderr)
            ),
        )),
    }
}

/// Writes the input beside the main thread: a command that reads late must not block the test.
fn feed(running: &mut Running, input: &[u8]) {
    if let Some(mut stdin) = running.take_stdin() {
        let input = input.to_vec();
        thread::spawn(move || {
            // A command that does not read its input is not at fault.
            let _ = stdin.write_all(&input);
        });
    }
}

/// Everything that a pipe gives, read by a thread of its own. Useful with the pipes of a
/// [`Running`] that a test watches while it runs.
#[derive(Debug)]
pub struct Gathered {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: thread::JoinHandle<()>,
}

impl<R: Read + Send + 'static> From<R> for Gathered {
    fn from(mut pipe: R) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                locked(&sink).extend_from_slice(&buffer[..count]);
            }
        });
        Self { bytes, reader }
    }
}

impl Gathered {
    /// What has come so far, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&locked(&self.bytes)).into_owned()
    }

    /// Waits until what has come holds `wanted`; `TimedOut` quotes what came instead.
    pub fn wait_for(&self, wanted: &str, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        while !self.text().contains(wanted) {
            if Instant::now() >= deadline {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "{wanted:?} did not come within {limit:?}, but {:?}",
                        self.text()
                    ),
                ));
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Everything, once the pipe has ended or the time is up.
    pub fn finish(self, deadline: Instant) -> Vec<u8> {
        while !self.reader.is_finished() && Instant::now() < deadline {
            thread::sleep(LOOK);
        }
        std::mem::take(&mut *locked(&self.bytes))
    }
}

fn locked(bytes: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    bytes
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the process is to do that runs [`child`].
    const PART: &str = "HVSOCK_TESTKIT_CHILD";

    /// The child of the other tests is this program once more, with this test only: every system
    /// has that one. What the test runner prints comes before and is not looked at.
    #[test]
    fn child() {
        match std::env::var(PART).as_deref() {
            Ok("answer") => {
                let mut input = String::new();
                io::stdin().read_to_string(&mut input).expect("stdin");
                print!("{input}");
                eprint!("no");
                std::process::exit(3);
            }
            Ok("hang") => {
                println!("so far");
                thread::sleep(Duration::from_secs(30));
            }
            _ => {}
        }
    }

    fn a_child_that(part: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "process::tests::child", "--nocapture"]);
        command.env(PART, part);
        command
    }

    #[test]
    fn output_carries_input_in_and_both_streams_out() {
        let limit = Duration::from_secs(20);
        let output = output(&mut a_child_that("answer"), b"hi\n", limit).expect("a child");
        assert!(output.stdout.ends_with(b"hi\n"), "{output:?}");
        assert!(output.stderr.ends_with(b"no"), "{output:?}");
        assert_eq!(output.status.code(), Some(3));
    }

    #[test]
    fn a_command_that_hangs_is_killed_and_quoted() {
        let start = Instant::now();
        let limit = Duration::from_secs(5);
        let error = output(&mut a_child_that("hang"), b"", limit).expect_err("it sleeps");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("so far"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_test_waits_for_what_a_process_prints_and_a_dropped_one_is_gone() {
        let mut command = a_child_that("hang");
        let mut running = Running::start(command.stdout(Stdio::piped())).expect("a child");
        let stdout = Gathered::from(running.take_stdout().expect("piped"));
        stdout
            .wait_for("so far", Duration::from_secs(20))
            .expect("it prints");
        let error = stdout
            .wait_for("never", Duration::from_millis(50))
            .expect_err("never");
        assert!(error.to_string().contains("so far"), "{error}");
        let start = Instant::now();
        drop(running);
        stdout.finish(start + Duration::from_secs(20));
        // Its end of the pipe is closed long before its sleep would be over.
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
