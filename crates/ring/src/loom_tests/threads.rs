//! Threads of one process that wait at the same end. They share the reader's state, the doorbell
//! and the list of waiters. The model repeats the steps of `RingEnd::wait`.

use super::*;
use crate::waiters::Waiters;
use loom::sync::Mutex;

struct SharedReader {
    reader: Mutex<Reader>,
    waiters: Waiters,
    shared: Arc<Shared>,
}

impl SharedReader {
    fn try_read(&self) -> bool {
        let mut reader = self.reader.lock().unwrap();
        if reader.available() == 0 {
            return false;
        }
        if reader.disarm() == Some(false) {
            self.waiters.wake(None);
        }
        reader.read(1);
        true
    }

    fn read(&self) {
        while !self.try_read() {
            let guard = self.waiters.join().unwrap();
            {
                let mut reader = self.reader.lock().unwrap();
                if !reader.arm() {
                    if reader.disarm() == Some(false) {
                        self.waiters.wake(None);
                    }
                    continue;
                }
            }
            if self.shared.reader.wait_or(guard.event()) {
                self.shared.reader.drain(usize::MAX);
                self.waiters.wake(Some(&guard));
            } else {
                guard.event().clear();
            }
        }
    }
}

/// One thread is parked; the other reads between two checks, or is parked as well.
#[test]
fn a_thread_that_drains_the_doorbell_wakes_the_other_waiters() {
    explore(Some(3), || {
        let (mut writer, reader) = sides();
        let shared = Arc::clone(&reader.shared);
        let end = Arc::new(SharedReader {
            reader: Mutex::new(reader),
            waiters: Waiters::default(),
            shared,
        });
        let other = Arc::clone(&end);
        let reads = thread::spawn(move || other.read());
        let writes = thread::spawn(move || {
            writer.write(1);
            writer.write(1);
        });
        end.read();
        reads.join().unwrap();
        writes.join().unwrap();
    });
}
