//! A value that threads hand over to each other, whose size can be read without the lock.

use super::fork_mutex::{ForkMutex, Inherit};
use super::sync::{AtomicUsize, Ordering};

/// A value behind a lock, and the number of its items when the lock was last released.
///
/// To hand over an item: put it in, then [wake](super::Descriptor::wake) the waiting threads. To
/// take one: [register](super::Descriptor::register) for wake-ups, check the size, sleep, and check
/// again. Registering and waking share a lock, which orders both sides, so the size itself can be
/// relaxed.
#[derive(Default)]
pub(super) struct Counted<T: Inherit> {
    value: ForkMutex<T>,
    len: AtomicUsize,
}

/// A value that contains items.
pub(super) trait Items: Inherit {
    /// The number of items.
    fn count(&self) -> usize;
}

impl<T: Items> Counted<T> {
    /// Calls a function with exclusive access to the value.
    pub(super) fn with<R>(&self, act: impl FnOnce(&mut T) -> R) -> R {
        let mut value = self.value.lock();
        let result = act(&mut value);
        self.len.store(value.count(), Ordering::Relaxed);
        result
    }

    /// The number of items now, or a moment ago.
    pub(super) fn len(&self) -> usize {
        match self.len.load(Ordering::Relaxed) {
            0 => 0, // the usual case
            len if self.value.is_own() => len,
            _ => self.with(|value| value.count()), // it may be inherited from the parent
        }
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::net::descriptor::Descriptor;
    use crate::net::sync::{Arc, bounded_model};
    use crate::net::sys::{model_fork, model_process};
    use crate::net::waker::Waker;
    use loom::thread;
    use std::collections::VecDeque;

    /// A backlog of numbered datagrams.
    #[derive(Default)]
    struct Numbers(VecDeque<usize>);

    impl Inherit for Numbers {
        fn inherit(&mut self) {
            self.0.clear();
        }
    }

    impl Items for Numbers {
        fn count(&self) -> usize {
            self.0.len()
        }
    }

    type Shared = Arc<(Descriptor, Counted<Numbers>)>;

    fn shared() -> Shared {
        model_process();
        let file = std::fs::File::open("/dev/null").unwrap();
        Arc::new((Descriptor::new(file.into(), false), Counted::default()))
    }

    /// Like a receive that gets more than its caller wants.
    fn hand_over(shared: &Shared, datagrams: &[usize]) {
        shared.1.with(|backlog| backlog.0.extend(datagrams));
        share_backlog(shared);
    }

    fn share_backlog(shared: &Shared) {
        if shared.1.len() > 0 {
            shared.0.wake();
        }
    }

    /// Like a wait: registers, checks, sleeps, checks again; finally wakes the next thread.
    fn take(shared: &Shared) -> usize {
        let waker = Arc::new(Waker::model());
        shared.0.register(&waker);
        let taken = loop {
            if shared.1.len() > 0
                && let Some(datagram) = shared.1.with(|backlog| backlog.0.pop_front())
            {
                break datagram;
            }
            waker.model_sleep();
        };
        shared.0.unregister(&waker);
        waker.clear();
        share_backlog(shared);
        taken
    }

    #[test]
    fn loom_a_thread_that_waits_gets_what_another_hands_over() {
        bounded_model(|| {
            let shared = shared();
            let other = Arc::clone(&shared);
            let taking = thread::spawn(move || take(&other));
            hand_over(&shared, &[7]);
            assert_eq!(taking.join().unwrap(), 7);
            assert_eq!(shared.1.len(), 0);
        });
    }

    #[test]
    fn loom_two_threads_that_wait_get_one_each() {
        bounded_model(|| {
            let shared = shared();
            let others: Vec<_> = (0..2)
                .map(|_| {
                    let other = Arc::clone(&shared);
                    thread::spawn(move || take(&other))
                })
                .collect();
            hand_over(&shared, &[1, 2]);
            let taken: usize = others.into_iter().map(|other| other.join().unwrap()).sum();
            assert_eq!((taken, shared.1.len()), (3, 0));
        });
    }

    #[test]
    fn loom_a_thread_that_takes_one_and_keeps_the_rest_wakes_the_next() {
        bounded_model(|| {
            let shared = shared();
            let first = Arc::clone(&shared);
            let second = Arc::clone(&shared);
            let taking = thread::spawn(move || take(&second));
            let handing = thread::spawn(move || {
                // Takes all items and puts back the excess, as one large receive does.
                first.1.with(|backlog| backlog.0.push_back(1));
                let all = first.1.with(|backlog| std::mem::take(&mut backlog.0));
                first.1.with(|backlog| backlog.0.extend(all));
                share_backlog(&first);
            });
            assert_eq!(taking.join().unwrap(), 1);
            handing.join().unwrap();
        });
    }

    #[test]
    fn loom_a_child_has_no_items_of_its_parent() {
        loom::model(|| {
            let shared = shared();
            shared.1.with(|backlog| backlog.0.push_back(1));
            model_fork();
            let other = Arc::clone(&shared);
            // While another thread inherits, the size may still be the parent's. The backlog is
            // empty, and a thread sees this once it has checked.
            let take = |shared: &Shared| {
                let size = shared.1.len();
                let taken = shared.1.with(|backlog| backlog.0.pop_front());
                assert!(size <= 1 && taken.is_none() && shared.1.len() == 0);
            };
            let taking = thread::spawn(move || take(&other));
            take(&shared);
            taking.join().unwrap();
        });
    }
}
