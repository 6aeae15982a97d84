//! Waiting until a socket is ready: with a deadline, spinning or asleep, and woken by a close.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Socket;
use crate::net::sys;
use crate::net::waker::Waker;

/// The kind of readiness to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// A datagram to read.
    Read,
    /// Room to write one.
    Write,
    /// An entry in the error queue.
    Error,
    /// A report that a datagram has left.
    Stamp,
}

/// The instant at which waiting ends, if ever.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// No deadline.
    pub const NEVER: Self = Self(None);

    /// The instant `timeout` from now; never, if the clock cannot represent it.
    pub fn after(timeout: Duration) -> Self {
        Self(Instant::now().checked_add(timeout))
    }

    /// An instant; never, if it is `None` because the clock cannot represent it.
    pub fn at(end: Option<Instant>) -> Self {
        Self(end)
    }

    /// The time until the deadline: zero if it has passed, `None` if there is no deadline.
    pub fn remaining(self) -> Option<Duration> {
        self.0.map(|end| end.saturating_duration_since(Instant::now()))
    }

    /// Whether the deadline is later than `end`.
    fn is_after(self, end: Instant) -> bool {
        self.0.is_none_or(|own| own > end)
    }

    fn is_past(self) -> bool {
        self.0.is_some_and(|end| end <= Instant::now())
    }
}

/// How long the kernel lets a call wait on a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelWait {
    /// Not at all: `O_NONBLOCK` is set.
    Never,
    /// For this long; then it fails with `EAGAIN`: `SO_RCVTIMEO` or `SO_SNDTIMEO` is set.
    Limited(Duration),
    /// Without a limit.
    Unlimited,
}

impl Socket {
    /// Queries how long the kernel would let a call without `MSG_DONTWAIT` wait. Any process that
    /// has the descriptor may change this.
    pub fn kernel_wait(&self, fd: BorrowedFd<'_>, interest: Interest) -> io::Result<KernelWait> {
        let timeout = match interest {
            Interest::Read | Interest::Error | Interest::Stamp => libc::SO_RCVTIMEO,
            Interest::Write => libc::SO_SNDTIMEO,
        };
        let wait = if sys::is_nonblocking(fd)? {
            KernelWait::Never
        } else {
            let limit = sys::time_option(fd, libc::SOL_SOCKET, timeout)?;
            if limit.is_zero() { KernelWait::Unlimited } else { KernelWait::Limited(limit) }
        };
        self.set_waits_unlimited(wait == KernelWait::Unlimited);
        Ok(wait)
    }
}

/// Why waiting ended without a result.
#[derive(Debug)]
pub enum Stop {
    /// The deadline passed.
    TimedOut,
    /// The descriptor was closed, here or in another thread.
    Closed,
    /// The operation, or the wait, failed. `EINTR` asks the caller to run the signal handlers and
    /// then wait again.
    Failed(io::Error),
}

/// How long a thread spins before it lets its signal handlers run.
const SPIN_SLICE: Duration = Duration::from_millis(20);
/// How often a thread without a [`Waker`] checks whether the socket was closed meanwhile.
const NO_WAKER_SLICE: Duration = Duration::from_millis(50);
/// If polling and retrying take less time than this, the thread did not sleep.
const INSTANT: Duration = Duration::from_micros(50);
/// The longest pause if the kernel alternates between "ready" and "try again".
const LONGEST_PAUSE: Duration = Duration::from_millis(5);
/// A thread runs its signal handlers this long after it was last busy, whether it slept or not. A
/// signal that arrives between two sleeps interrupts neither of them.
const LONGEST_DEAF: Duration = Duration::from_millis(100);

/// Asks the caller to run the signal handlers and then wait again.
fn interrupted() -> Stop {
    Stop::Failed(io::ErrorKind::Interrupted.into())
}

/// A thread's intention to wait for a socket.
pub struct Waiting<'a> {
    socket: &'a Socket,
    waker: Option<Arc<Waker>>,
    signals: Option<BorrowedFd<'a>>,
    /// Whether a signal may have arrived during the last run without interrupting a sleep.
    is_deaf: AtomicBool,
}

impl<'a> Waiting<'a> {
    /// Registers the calling thread to be woken when `socket` is closed.
    pub fn new(socket: &'a Socket) -> Self {
        let waker = Waker::of_this_thread();
        if let Some(waker) = &waker {
            socket.descriptor().register(waker);
        }
        Self { socket, waker, signals: None, is_deaf: AtomicBool::new(false) }
    }

    /// Makes a readable byte on `signals` end the wait with `EINTR`, and reads it. A handler that
    /// writes one wakes even a thread that is just about to sleep, which the signal alone would
    /// not.
    ///
    /// # Safety
    /// The descriptor must stay open, and non-blocking, for `'a`.
    #[must_use]
    pub unsafe fn signalled_by(mut self, signals: RawFd) -> Self {
        // SAFETY: the caller's promise.
        self.signals = Some(unsafe { sys::borrow_fd(signals) });
        self
    }

    /// Waits until `attempt` has a result other than `EAGAIN`. Its argument says whether the socket
    /// was shut down, in which case a call on a blocking descriptor would return at once. An
    /// attempt is made when the kernel reports readiness, and after a
    /// [`Descriptor::wake`](crate::net::Descriptor::wake).
    ///
    /// Until `spin` the thread stays awake and keeps trying; then it sleeps until the kernel
    /// reports readiness.
    pub fn run<T>(
        &self,
        interest: Interest,
        deadline: Deadline,
        spin: Option<Instant>,
        mut attempt: impl FnMut(BorrowedFd<'_>, bool) -> io::Result<T>,
    ) -> Result<T, Stop> {
        let mut deaf_since = self.is_deaf.load(Ordering::Relaxed).then(Instant::now);
        let result = self.run_since(&mut deaf_since, interest, deadline, spin, &mut attempt);
        let is_deaf = deaf_since.is_some() && matches!(result, Err(Stop::TimedOut));
        self.is_deaf.store(is_deaf, Ordering::Relaxed);
        result
    }

    /// Implements [`run`](Self::run). Records in `deaf_since` since when a signal may have arrived
    /// while the thread did not sleep. Such a signal interrupts nothing, not even a later sleep.
    fn run_since<T>(
        &self,
        deaf_since: &mut Option<Instant>,
        interest: Interest,
        deadline: Deadline,
        spin: Option<Instant>,
        attempt: &mut impl FnMut(BorrowedFd<'_>, bool) -> io::Result<T>,
    ) -> Result<T, Stop> {
        let in_flight = self.socket.descriptor().enter().map_err(|_| Stop::Closed)?;
        let fd = in_flight.as_fd();
        if let Some(until) = spin {
            let started = Instant::now();
            if started < until {
                deaf_since.get_or_insert(started);
            }
            if let Some(result) = self.spin(fd, deadline, until, attempt) {
                return result;
            }
        }
        let mut pause = Duration::ZERO;
        loop {
            let started = Instant::now();
            let refused = self.socket.counters().refused();
            let ready = match interest {
                // The kernel does not know of datagrams that another thread has put into the backlog,
                // nor that the session in which they would come has ended.
                Interest::Read
                    if self.socket.backlog_len() > 0 || self.socket.end_of_session().is_err() =>
                {
                    libc::POLLIN
                }
                Interest::Error if self.socket.has_stored_error_messages() => libc::POLLERR,
                Interest::Stamp if self.socket.has_stamps() => libc::POLLERR,
                _ => match deaf_since.and_then(|since| since.checked_add(LONGEST_DEAF)) {
                    Some(end) if deadline.is_after(end) => {
                        match self.sleep(fd, interest, Deadline::at(Some(end))) {
                            Err(Stop::TimedOut) => return Err(interrupted()),
                            ready => ready?,
                        }
                    }
                    _ => self.sleep(fd, interest, deadline)?,
                },
            };
            if interest == Interest::Read {
                self.socket.note_wait(started);
            }
            match attempt(fd, ready & (libc::POLLHUP | libc::POLLRDHUP) != 0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result.map_err(Stop::Failed),
            }
            let now = Instant::now();
            let slept = now.saturating_duration_since(started);
            let deaf_since = *deaf_since.get_or_insert(now);
            if ready == 0 {
                continue; // woken by something else than the socket
            }
            // Ready, but EAGAIN. A non-empty error queue counts as ready until it is empty.
            let kept = if ready & libc::POLLERR != 0 && interest != Interest::Error {
                self.socket.store_error_messages(fd).0
            } else {
                0
            };
            // Or another thread was faster; or the kernel cannot know, as with an AF_UNIX peer
            // whose queue is full. Once is harmless, but polling again and again would use a whole
            // core.
            if deadline.is_past() {
                return Err(Stop::TimedOut);
            }
            if kept > 0 || self.socket.counters().refused() != refused {
                // There was something: entries of the error queue, or datagrams that the guard
                // refused. There may be more, and datagrams that pass may follow. But in a flood
                // the thread would never sleep.
                if deaf_since.elapsed() > SPIN_SLICE {
                    return Err(interrupted());
                }
                continue;
            }
            if deaf_since.elapsed() > LONGEST_DEAF {
                return Err(interrupted());
            }
            if slept < INSTANT {
                self.pause(deadline, pause)?;
                pause = (2 * pause).clamp(Duration::from_micros(20), LONGEST_PAUSE);
            } else {
                pause = Duration::ZERO;
            }
        }
    }

    fn spin<T>(
        &self,
        fd: BorrowedFd<'_>,
        deadline: Deadline,
        until: Instant,
        attempt: &mut impl FnMut(BorrowedFd<'_>, bool) -> io::Result<T>,
    ) -> Option<Result<T, Stop>> {
        let slice_end = Instant::now() + SPIN_SLICE;
        loop {
            match attempt(fd, false) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Some(result.map_err(Stop::Failed)),
            }
            if self.socket.descriptor().is_closed() {
                return Some(Err(Stop::Closed));
            }
            let now = Instant::now();
            if deadline.is_past() {
                return Some(Err(Stop::TimedOut));
            }
            if now >= until {
                return None;
            }
            if now >= slice_end {
                return Some(Err(interrupted()));
            }
            std::hint::spin_loop();
        }
    }

    /// Sleeps until there is something to try; returns the event: `POLLIN`, …, or none.
    fn sleep(
        &self,
        fd: BorrowedFd<'_>,
        interest: Interest,
        deadline: Deadline,
    ) -> Result<libc::c_short, Stop> {
        let events = match interest {
            Interest::Read => libc::POLLIN | libc::POLLRDHUP,
            Interest::Write => libc::POLLOUT,
            Interest::Error | Interest::Stamp => 0, // poll always reports POLLERR
        };
        let socket = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
        self.poll(socket, deadline.remaining())
    }

    /// Sleeps for `time`, regardless of the socket.
    fn pause(&self, deadline: Deadline, time: Duration) -> Result<(), Stop> {
        let nothing = libc::pollfd { fd: -1, events: 0, revents: 0 };
        let time = deadline.remaining().map_or(time, |remaining| time.min(remaining));
        match self.poll(nothing, Some(time)) {
            Ok(_) | Err(Stop::TimedOut) => Ok(()),
            Err(stop) => Err(stop),
        }
    }

    fn poll(&self, socket: libc::pollfd, timeout: Option<Duration>) -> Result<libc::c_short, Stop> {
        let event = self.waker.as_ref().map_or(-1, |waker| waker.as_raw_fd());
        let signals = self.signals.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let readable = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds = [socket, readable(event), readable(signals)];
        let slice = match (&self.waker, timeout) {
            (Some(_), timeout) => timeout,
            (None, timeout) => {
                Some(timeout.map_or(NO_WAKER_SLICE, |left| left.min(NO_WAKER_SLICE)))
            }
        };
        let ready = sys::poll(&mut fds, slice).map_err(Stop::Failed)?;
        if self.socket.descriptor().is_closed() {
            return Err(Stop::Closed);
        }
        if let Some(signals) = self.signals
            && fds[2].revents != 0
        {
            // EAGAIN: another thread was faster.
            let _ = sys::discard(signals);
            return Err(interrupted());
        }
        if fds[1].revents != 0 {
            // The thread was woken to check the backlog, or for another socket that it waits for in
            // an outer call that a signal handler interrupted; that call will check for itself.
            self.empty();
        }
        if ready == 0 && slice == timeout {
            return Err(Stop::TimedOut);
        }
        Ok(fds[0].revents)
    }

    fn empty(&self) {
        if let Some(waker) = &self.waker {
            waker.empty();
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(waker) = &self.waker {
            self.socket.descriptor().unregister(waker);
            waker.clear();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
