//! Threads that hang and panic on demand. Builds without debug assertions have none of this.
//!
//! The file that `HVSOCK_TEST_THREAD_FAULT` names holds `THREAD:panic`, or `THREAD:hang`, by which the next turn of that
//! thread takes until the file is there again. The thread removes the file before it acts, so that it does once.

pub(super) use hook::Fault;

#[cfg(debug_assertions)]
mod hook {
    use std::ffi::OsString;
    use std::fs;
    use std::time::Duration;

    /// What a thread looks at in each turn.
    pub(in super::super) struct Fault {
        path: OsString,
        thread: String,
    }

    impl Fault {
        /// The faults of a thread with this name.
        pub(in super::super) fn of(thread: &str) -> Option<Self> {
            Some(Self {
                path: std::env::var_os("HVSOCK_TEST_THREAD_FAULT")?,
                thread: thread.to_owned(),
            })
        }

        /// Does what is due.
        pub(in super::super) fn act(&self) {
            let Ok(text) = fs::read_to_string(&self.path) else {
                return;
            };
            let Some((thread, what)) = text.trim().split_once(':') else {
                return;
            };
            if thread != self.thread || fs::remove_file(&self.path).is_err() {
                return;
            }
            match what {
                "hang" => {
                    while fs::metadata(&self.path).is_err() {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                }
                _ => panic!("a test lets the thread {thread} panic"),
            }
        }
    }
}

#[cfg(not(debug_assertions))]
mod hook {
    /// Nothing.
    pub(in super::super) enum Fault {}

    impl Fault {
        pub(in super::super) fn of(_: &str) -> Option<Self> {
            None
        }

        pub(in super::super) fn act(&self) {
            match *self {}
        }
    }
}
