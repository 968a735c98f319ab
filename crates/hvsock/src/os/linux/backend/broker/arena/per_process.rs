//! Values that belong to one process: a child that was forked gets one of its own.
//!
//! A forked child has copies of its parent's arenas. If both used them, one would take what the other
//! waits for. The parent's value stays where it is, since connections of the child may refer to it.

use std::sync::OnceLock;

/// A value for each process that a fork made of this one.
#[derive(Debug)]
pub(super) struct PerProcess<T: 'static> {
    first: OnceLock<Box<Node<T>>>,
}

#[derive(Debug)]
struct Node<T> {
    pid: u32,
    value: T,
    /// The value of a child. There is one more node for each fork between the first process and this one.
    next: OnceLock<Box<Node<T>>>,
}

impl<T: Default> PerProcess<T> {
    pub(super) const fn new() -> Self {
        Self {
            first: OnceLock::new(),
        }
    }

    /// The value of the process `pid`, which is the calling one.
    pub(super) fn of(&self, pid: u32) -> &T {
        let mut link = &self.first;
        loop {
            let node = link.get_or_init(|| {
                Box::new(Node {
                    pid,
                    value: T::default(),
                    next: OnceLock::new(),
                })
            });
            // Only the last one counts: the number of an ancestor may be in use again.
            if node.pid == pid && node.next.get().is_none() {
                return &node.value;
            }
            link = &node.next;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn each_process_has_one_value_even_if_a_number_is_used_again() {
        static VALUES: PerProcess<AtomicU32> = PerProcess::new();
        let next = |pid| VALUES.of(pid).fetch_add(1, Ordering::Relaxed);
        assert_eq!([next(7), next(7), next(7)], [0, 1, 2]);
        assert_eq!([next(8), next(8)], [0, 1]);
        assert_eq!([next(7), next(7)], [0, 1]);
    }
}
