//! A FIFO of distinct indices with removal from the middle in constant time.

/// No index: the end of the queue.
const NONE: u32 = u32::MAX;

/// In [`Links::prev`]: not queued.
const OUT: u32 = u32::MAX - 1;

#[derive(Clone, Copy, Debug)]
struct Links {
    prev: u32,
    next: u32,
}

/// Indices in FIFO order, as a doubly linked list in a vector. All operations take constant time.
#[derive(Debug)]
pub(super) struct IndexQueue {
    links: Vec<Links>,
    first: u32,
    last: u32,
}

impl Default for IndexQueue {
    fn default() -> Self {
        Self {
            links: Vec::new(),
            first: NONE,
            last: NONE,
        }
    }
}

impl IndexQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.first == NONE
    }

    pub(super) fn front(&self) -> Option<u32> {
        (self.first != NONE).then_some(self.first)
    }

    /// The indices in FIFO order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        std::iter::successors(self.front(), |index| {
            let next = self.links[*index as usize].next;
            (next != NONE).then_some(next)
        })
    }

    pub(super) fn contains(&self, index: u32) -> bool {
        self.links
            .get(index as usize)
            .is_some_and(|links| links.prev != OUT)
    }

    /// Appends an index, unless it is queued already.
    pub(super) fn push(&mut self, index: u32) {
        if self.contains(index) {
            return;
        }
        let slot = index as usize;
        if slot >= self.links.len() {
            let vacant = Links {
                prev: OUT,
                next: NONE,
            };
            self.links.resize(slot + 1, vacant);
        }
        self.links[slot] = Links {
            prev: self.last,
            next: NONE,
        };
        match self.last {
            NONE => self.first = index,
            last => self.links[last as usize].next = index,
        }
        self.last = index;
    }

    /// Removes an index, if it is queued.
    pub(super) fn remove(&mut self, index: u32) {
        if !self.contains(index) {
            return;
        }
        let Links { prev, next } = self.links[index as usize];
        self.links[index as usize].prev = OUT;
        match prev {
            NONE => self.first = next,
            prev => self.links[prev as usize].next = next,
        }
        match next {
            NONE => self.last = prev,
            next => self.links[next as usize].prev = prev,
        }
    }

    /// Moves the first index to the end.
    pub(super) fn rotate(&mut self) {
        if let Some(first) = self.front()
            && first != self.last
        {
            self.remove(first);
            self.push(first);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_behaves_like_a_list_without_duplicates(ops in vec((0..4u8, 0..6u32), 0..200)) {
            let (mut queue, mut list) = (IndexQueue::default(), VecDeque::new());
            for (op, index) in ops {
                match op {
                    0 | 1 => {
                        queue.push(index);
                        if !list.contains(&index) {
                            list.push_back(index);
                        }
                    }
                    2 => {
                        queue.remove(index);
                        list.retain(|other| *other != index);
                    }
                    _ => {
                        queue.rotate();
                        if !list.is_empty() {
                            list.rotate_left(1);
                        }
                    }
                }
                prop_assert_eq!(queue.front(), list.front().copied());
                prop_assert_eq!(queue.is_empty(), list.is_empty());
                prop_assert_eq!(queue.contains(index), list.contains(&index));
                prop_assert!(queue.iter().eq(list.iter().copied()));
            }
            while let Some(index) = list.pop_front() {
                prop_assert_eq!(queue.front(), Some(index));
                queue.remove(index);
            }
            prop_assert!(queue.is_empty());
        }
    }
}
