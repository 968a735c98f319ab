//! A queue in which each number is at most once, and that any number can leave at once.

/// No number: the end of the queue.
const NONE: u32 = u32::MAX;

/// In [`Links::before`]: not queued.
const OUT: u32 = u32::MAX - 1;

#[derive(Clone, Copy, Debug)]
struct Links {
    before: u32,
    after: u32,
}

/// Numbers in the order in which they came. All operations take constant time.
#[derive(Debug)]
pub(super) struct Queue {
    links: Vec<Links>,
    first: u32,
    last: u32,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            links: Vec::new(),
            first: NONE,
            last: NONE,
        }
    }
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.first == NONE
    }

    pub(super) fn front(&self) -> Option<u32> {
        (self.first != NONE).then_some(self.first)
    }

    pub(super) fn contains(&self, number: u32) -> bool {
        self.links
            .get(number as usize)
            .is_some_and(|links| links.before != OUT)
    }

    /// Adds a number at the end, unless it is queued already.
    pub(super) fn push(&mut self, number: u32) {
        if self.contains(number) {
            return;
        }
        let place = number as usize;
        if place >= self.links.len() {
            let vacant = Links {
                before: OUT,
                after: NONE,
            };
            self.links.resize(place + 1, vacant);
        }
        self.links[place] = Links {
            before: self.last,
            after: NONE,
        };
        match self.last {
            NONE => self.first = number,
            last => self.links[last as usize].after = number,
        }
        self.last = number;
    }

    /// Takes a number out, if it is queued.
    pub(super) fn remove(&mut self, number: u32) {
        if !self.contains(number) {
            return;
        }
        let Links { before, after } = self.links[number as usize];
        self.links[number as usize].before = OUT;
        match before {
            NONE => self.first = after,
            before => self.links[before as usize].after = after,
        }
        match after {
            NONE => self.last = before,
            after => self.links[after as usize].before = before,
        }
    }

    /// Puts the first number behind all others.
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
        fn it_does_what_a_list_without_duplicates_does(ops in vec((0..4u8, 0..6u32), 0..200)) {
            let (mut queue, mut list) = (Queue::default(), VecDeque::new());
            for (op, number) in ops {
                match op {
                    0 | 1 => {
                        queue.push(number);
                        if !list.contains(&number) {
                            list.push_back(number);
                        }
                    }
                    2 => {
                        queue.remove(number);
                        list.retain(|other| *other != number);
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
                prop_assert_eq!(queue.contains(number), list.contains(&number));
            }
            while let Some(number) = list.pop_front() {
                prop_assert_eq!(queue.front(), Some(number));
                queue.remove(number);
            }
            prop_assert!(queue.is_empty());
        }
    }
}
