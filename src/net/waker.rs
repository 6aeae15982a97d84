//! Waking a thread that sleeps until its socket is ready.

use std::cell::RefCell;
use std::io;
use std::os::fd::RawFd;

use super::sync::{Arc, AtomicBool, Ordering};
use super::sys;

/// Wakes a sleeping thread, with an eventfd that the thread polls together with the socket.
///
/// There is one for each thread that has ever waited, not one for each socket, so a program with a
/// thousand sockets does not need a thousand more descriptors.
pub(super) struct Waker {
    event: Event,
    signalled: AtomicBool,
    generation: u32,
}

impl Waker {
    fn new() -> io::Result<Self> {
        let (event, signalled) = (Event::new()?, AtomicBool::new(false));
        Ok(Self { event, signalled, generation: sys::fork_generation() })
    }

    /// The calling thread's waker, or `None` if creating its descriptor fails.
    pub(super) fn of_this_thread() -> Option<Arc<Self>> {
        thread_local! {
            static WAKER: RefCell<Option<Arc<Waker>>> = const { RefCell::new(None) };
        }
        WAKER
            .try_with(|waker| {
                let mut waker = waker.borrow_mut();
                // A forked child shares the eventfd with the parent, and must not wake it.
                if waker.as_ref().is_none_or(|waker| !waker.is_own()) {
                    *waker = Some(Arc::new(Self::new().ok()?));
                }
                waker.clone()
            })
            .ok()
            .flatten()
    }

    /// Whether it was created in this process rather than in its parent before a fork.
    fn is_own(&self) -> bool {
        self.generation == sys::fork_generation()
    }

    /// The descriptor, which is readable while the waker is signalled.
    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Wakes the thread, unless the thread belongs to the process that this one was forked from.
    pub(super) fn wake(&self) {
        if !self.is_own() {
            return;
        }
        self.signalled.store(true, Ordering::Release);
        self.event.signal();
    }

    /// Clears the eventfd if the flag says that it is signalled. A concurrent wake-up may be
    /// missed; it then only shortens the next sleep.
    pub(super) fn clear(&self) {
        if self.signalled.load(Ordering::Acquire) {
            self.empty();
        }
    }

    /// Clears the eventfd. Called after poll has reported it readable, so this ignores the flag,
    /// which may be stale: a wake-up sets the flag before it writes, so two wake-ups in quick
    /// succession can leave a readable eventfd and a cleared flag.
    pub(super) fn empty(&self) {
        self.signalled.store(false, Ordering::Release);
        self.event.clear();
    }

    #[cfg(all(test, loom))]
    pub(super) fn model() -> Self {
        Self::new().unwrap()
    }

    /// Sleeps like poll, then clears the eventfd.
    #[cfg(all(test, loom))]
    pub(super) fn model_sleep(&self) {
        self.event.poll();
        self.empty();
    }

    #[cfg(test)]
    pub(super) fn signal_without_flag(&self) {
        self.event.signal();
    }
}

#[cfg(not(loom))]
use eventfd::Event;
#[cfg(loom)]
use model::Event;

#[cfg(not(loom))]
mod eventfd {
    use std::io;
    use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

    use crate::net::sys;

    /// An eventfd.
    pub(super) struct Event(OwnedFd);

    impl Event {
        pub(super) fn new() -> io::Result<Self> {
            sys::eventfd().map(Self)
        }

        pub(super) fn as_raw_fd(&self) -> RawFd {
            self.0.as_raw_fd()
        }

        pub(super) fn signal(&self) {
            // If the counter is full, the eventfd is readable anyway.
            let _ = sys::signal_event(self.0.as_fd());
        }

        pub(super) fn clear(&self) {
            // EAGAIN: it was already clear.
            let _ = sys::clear_event(self.0.as_fd());
        }
    }
}

#[cfg(loom)]
mod model {
    use std::io;
    use std::os::fd::RawFd;

    use crate::net::sync::{Condvar, Mutex};

    /// A model of an eventfd, for loom.
    pub(super) struct Event {
        is_readable: Mutex<bool>,
        signalled: Condvar,
    }

    impl Event {
        #[expect(clippy::unnecessary_wraps, reason = "an eventfd can fail")]
        pub(super) fn new() -> io::Result<Self> {
            Ok(Self { is_readable: Mutex::new(false), signalled: Condvar::new() })
        }

        #[expect(clippy::unused_self, reason = "an eventfd has a number")]
        pub(super) fn as_raw_fd(&self) -> RawFd {
            -1
        }

        pub(super) fn signal(&self) {
            *self.is_readable.lock().unwrap() = true;
            self.signalled.notify_all();
        }

        pub(super) fn clear(&self) {
            *self.is_readable.lock().unwrap() = false;
        }

        /// Sleeps until it is readable.
        pub(super) fn poll(&self) {
            let mut is_readable = self.is_readable.lock().unwrap();
            while !*is_readable {
                is_readable = self.signalled.wait(is_readable).unwrap();
            }
        }
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::net::sync::{AtomicUsize, bounded_model};

    /// A thread that sleeps until an item is available, like a wait: it checks, sleeps, and clears
    /// the eventfd that woke it.
    fn wait_for(waker: &Waker, count: &AtomicUsize, wanted: usize) {
        while count.load(Ordering::Acquire) < wanted {
            waker.model_sleep();
        }
    }

    #[test]
    fn loom_two_wake_ups_close_together_are_never_lost() {
        bounded_model(|| {
            let shared = Arc::new((Waker::model(), AtomicUsize::new(0)));
            let wakers: Vec<_> = (0..2)
                .map(|_| {
                    let shared = Arc::clone(&shared);
                    loom::thread::spawn(move || {
                        shared.1.fetch_add(1, Ordering::Release);
                        shared.0.wake();
                    })
                })
                .collect();
            wait_for(&shared.0, &shared.1, 2);
            wakers.into_iter().for_each(|waker| waker.join().unwrap());
        });
    }

    #[test]
    fn loom_clearing_at_the_end_of_a_wait_loses_no_later_wake_up() {
        bounded_model(|| {
            let shared = Arc::new((Waker::model(), AtomicUsize::new(0)));
            let other = Arc::clone(&shared);
            let waking = loom::thread::spawn(move || {
                for _ in 0..2 {
                    other.1.fetch_add(1, Ordering::Release);
                    other.0.wake();
                }
            });
            // The first wait may end with or without sleeping; then its waker is cleared.
            wait_for(&shared.0, &shared.1, 1);
            shared.0.clear();
            wait_for(&shared.0, &shared.1, 2);
            waking.join().unwrap();
        });
    }
}
