//! Commands to a relay's thread.
//!
//! The thread carries out a command between two datagrams: after those that had arrived before,
//! and before those that arrive later. The caller waits until that is done.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::super::impairments::Impairments;
use super::super::scripts::{Scope, Script};
use crate::net::sys;

/// A change of a running relay, which its thread carries out.
pub(super) enum Command {
    /// Cut some directions.
    Cut([bool; 2]),
    /// End the cut of some directions.
    Heal([bool; 2]),
    /// Give each client another port.
    Rebind,
    /// Set the impairments of both directions, and replace some scripts.
    Change(Box<[Impairments; 2]>, Vec<(Scope, Script)>),
    /// Cut both directions, and end.
    End,
}

/// A command of another thread. Dropping the sender tells that thread that the relay has ended.
pub(super) type Request = (Command, Sender<io::Result<()>>);

/// The commands that a relay's thread has yet to carry out.
pub(super) struct Control {
    queue: Mutex<Queue>,
    wake: OwnedFd,
    is_stopping: AtomicBool,
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<Request>,
    /// Those that a script's function has given, in the relay's own thread.
    of_function: VecDeque<Command>,
    /// Senders of threads that wait for the end.
    waits_for_end: Vec<Sender<io::Result<()>>>,
    has_ended: bool,
}

impl Control {
    pub(super) fn new() -> io::Result<Self> {
        let (queue, wake) = (Mutex::default(), sys::eventfd()?);
        Ok(Self { queue, wake, is_stopping: AtomicBool::new(false) })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the thread to carry out a command.
    pub(super) fn request(&self, command: Command) -> Pending {
        let (sender, receiver) = mpsc::channel();
        let mut queue = self.queue();
        if !queue.has_ended {
            queue.requests.push_back((command, sender));
            self.signal();
        }
        Pending(Some(receiver))
    }

    /// Has the thread carry out a command once the function that it is in has returned.
    pub(super) fn request_in_function(&self, command: Command) {
        self.queue().of_function.push_back(command);
    }

    /// Asks the thread to cut both directions and to end. The result is there when it has ended.
    pub(super) fn request_end(&self) -> Pending {
        let (sender, receiver) = mpsc::channel();
        let mut queue = self.queue();
        if !queue.has_ended {
            let (before_the_end, _) = mpsc::channel();
            queue.requests.push_back((Command::End, before_the_end));
            queue.waits_for_end.push(sender);
            self.signal();
        }
        Pending(Some(receiver))
    }

    /// Asks the thread to end at once, without a wait.
    pub(super) fn end_soon(&self) {
        self.is_stopping.store(true, Ordering::Release);
        self.signal();
    }

    fn signal(&self) {
        // If the counter is full, the eventfd is readable anyway.
        let _ = sys::signal_event(self.wake.as_fd());
    }

    // The thread's side

    /// A descriptor that is readable once there are commands.
    pub(super) fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Makes the descriptor not readable. Called before [`Self::take`].
    pub(super) fn clear(&self) {
        // If it is not readable, there is nothing to clear.
        let _ = sys::clear_event(self.wake.as_fd());
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    pub(super) fn take(&self) -> VecDeque<Request> {
        std::mem::take(&mut self.queue().requests)
    }

    pub(super) fn next_of_function(&self) -> Option<Command> {
        self.queue().of_function.pop_front()
    }

    /// The thread has ended: nobody waits for it any longer.
    pub(super) fn end(&self) {
        let mut queue = self.queue();
        let rest = std::mem::replace(&mut *queue, Queue { has_ended: true, ..Queue::default() });
        drop(queue);
        drop(rest); // the scripts in it may be Python's
    }
}

/// A command that is carried out soon.
#[must_use = "the command may not have been carried out yet"]
pub struct Pending(Option<Receiver<io::Result<()>>>);

impl Pending {
    /// A command that needs no wait.
    pub(super) const DONE: Self = Self(None);

    /// Waits for at most `timeout`. Returns the result; `None` if there is none yet. If the relay
    /// has ended, there is nothing to wait for.
    pub fn wait(&mut self, timeout: Duration) -> Option<io::Result<()>> {
        let Some(receiver) = &self.0 else { return Some(Ok(())) };
        match receiver.recv_timeout(timeout) {
            Ok(result) => Some(result),
            Err(RecvTimeoutError::Disconnected) => Some(Ok(())),
            Err(RecvTimeoutError::Timeout) => None,
        }
    }
}
