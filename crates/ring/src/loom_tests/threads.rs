//! Threads of one process that wait at the same end: they share the reader's side of the words,
//! the bell, and the list of those who wait. What they do is `End::wait`'s, step by step.

use super::*;
use crate::waiters::Waiters;
use loom::sync::Mutex;

struct End {
    reader: Mutex<Reader>,
    waiters: Waiters,
    shared: Arc<Shared>,
}

impl End {
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
            let seat = self.waiters.join().unwrap();
            {
                let mut reader = self.reader.lock().unwrap();
                if !reader.arm() {
                    if reader.disarm() == Some(false) {
                        self.waiters.wake(None);
                    }
                    continue;
                }
            }
            if self.shared.reader.wait_or(seat.event()) {
                self.shared.reader.take(usize::MAX);
                self.waiters.wake(Some(&seat));
            } else {
                seat.event().clear();
            }
        }
    }
}

/// One of them sleeps; the other only looks now and then, or sleeps as well.
#[test]
fn no_thread_sleeps_through_what_another_of_its_process_has_heard() {
    bounded(Some(3), || {
        let (mut writer, reader) = ends();
        let shared = Arc::clone(&reader.shared);
        let end = Arc::new(End {
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
