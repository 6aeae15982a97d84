//! Waiting until a socket is ready: with a deadline, awake or asleep, and woken by a close.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::socket::Socket;
use super::sys;
use super::waker::Waker;

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// A datagram to read.
    Read,
    /// Room to write one.
    Write,
    /// An entry in the error queue.
    Error,
}

/// The instant at which waiting ends, if ever.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// No deadline.
    pub const NEVER: Self = Self(None);

    /// The instant that lies `timeout` from now. One too far for the clock is never.
    pub fn after(timeout: Duration) -> Self {
        Self(Instant::now().checked_add(timeout))
    }

    /// An instant; `None`, which is one too far for the clock, is never.
    pub fn at(end: Option<Instant>) -> Self {
        Self(end)
    }

    /// How long it is until then: nothing where that is past, `None` where there is no end.
    pub fn remaining(self) -> Option<Duration> {
        self.0.map(|end| end.saturating_duration_since(Instant::now()))
    }

    /// Whether it comes later than `end`.
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
    /// For so long, and then it fails with `EAGAIN`: `SO_RCVTIMEO` or `SO_SNDTIMEO` is set.
    Limited(Duration),
    /// Until it is over.
    Unlimited,
}

impl Socket {
    /// Asks how long the kernel would let a call wait, without `MSG_DONTWAIT` among its flags.
    /// Anybody who has the descriptor, in any process, may change that.
    pub fn kernel_wait(&self, fd: BorrowedFd<'_>, interest: Interest) -> io::Result<KernelWait> {
        let timeout = match interest {
            Interest::Read | Interest::Error => libc::SO_RCVTIMEO,
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
    /// The deadline came.
    TimedOut,
    /// The descriptor was closed, here or in another thread.
    Closed,
    /// The operation, or the wait, failed. `EINTR` asks for the signal handlers to run, then to
    /// wait again.
    Failed(io::Error),
}

/// How long a thread spins before it lets its signal handlers run.
const SPIN_SLICE: Duration = Duration::from_millis(20);
/// How often a thread that could not have a [`Waker`] looks whether it was closed meanwhile.
const NO_WAKER_SLICE: Duration = Duration::from_millis(50);
/// A poll that returns within this time did not sleep.
const INSTANT: Duration = Duration::from_micros(50);
/// The longest pause where the kernel says "ready" and "try again" in turns.
const LONGEST_PAUSE: Duration = Duration::from_millis(5);
/// How long after a moment of work a thread lets its signal handlers run, asleep or not. A signal
/// that arrives between two sleeps interrupts neither of them.
const LONGEST_DEAF: Duration = Duration::from_millis(100);

/// Asks for the signal handlers to run, then to wait again.
fn interrupted() -> Stop {
    Stop::Failed(io::ErrorKind::Interrupted.into())
}

/// A thread's intention to wait for a socket.
pub struct Waiting<'a> {
    socket: &'a Socket,
    waker: Option<Arc<Waker>>,
    signals: Option<BorrowedFd<'a>>,
    /// Whether a signal may have arrived during the last run and have interrupted nothing.
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

    /// Lets a byte that can be read from `signals` end the wait with `EINTR`, and reads it. A
    /// handler that writes one wakes even a thread that is just about to sleep, which the signal
    /// alone would not.
    ///
    /// # Safety
    /// The descriptor must stay open, and non-blocking, for `'a`.
    #[must_use]
    pub unsafe fn signalled_by(mut self, signals: RawFd) -> Self {
        // SAFETY: the caller's promise.
        self.signals = Some(unsafe { sys::borrow_fd(signals) });
        self
    }

    /// Waits until `attempt` has a result other than `EAGAIN`. It is told whether the socket was
    /// shut down, so that a call on a blocking descriptor would return at once. It is made when the
    /// kernel says so, and after a [`Descriptor::wake`](super::Descriptor::wake).
    ///
    /// Until `spin` the thread stays awake and keeps trying; then it sleeps until the kernel says
    /// that trying makes sense.
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

    /// Does what [`run`](Self::run) does. It notes in `deaf_since` since when a signal may have
    /// arrived while the thread did not sleep. That interrupts nothing, and no later sleep is
    /// interrupted for it.
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
                // Another thread has kept something, which the kernel does not know of.
                Interest::Read if self.socket.pending() > 0 => libc::POLLIN,
                Interest::Error if self.socket.has_kept_errors() => libc::POLLERR,
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
            let slept = started.elapsed();
            match attempt(fd, ready & (libc::POLLHUP | libc::POLLRDHUP) != 0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result.map_err(Stop::Failed),
            }
            let deaf_since = *deaf_since.get_or_insert(started + slept);
            if ready == 0 {
                continue; // woken, and not by the socket
            }
            // Ready, and yet not. An error queue with entries counts as ready until it is empty.
            let kept = if ready & libc::POLLERR != 0 && interest != Interest::Error {
                self.socket.keep_error_messages(fd)
            } else {
                0
            };
            // Or another thread was faster; or the kernel cannot know, as with an AF_UNIX peer
            // whose queue is full. Once is nothing, but to poll on and on would burn the core.
            if deadline.is_past() {
                return Err(Stop::TimedOut);
            }
            if kept > 0 || self.socket.counters().refused() != refused {
                // There was something: entries of the error queue, or datagrams for the guard to
                // refuse. There may be more, and behind it what passes. But in a flood the thread
                // would never sleep.
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

    /// Sleeps until there is something to try, and returns what: `POLLIN`, …, or nothing.
    fn sleep(
        &self,
        fd: BorrowedFd<'_>,
        interest: Interest,
        deadline: Deadline,
    ) -> Result<libc::c_short, Stop> {
        let events = match interest {
            Interest::Read => libc::POLLIN | libc::POLLRDHUP,
            Interest::Write => libc::POLLOUT,
            Interest::Error => 0, // poll always reports POLLERR
        };
        let socket = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
        self.poll(socket, deadline.remaining())
    }

    /// Sleeps for `time`, whatever the socket does.
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
            // Woken to look at what was kept. Or for another socket that this thread waits for too,
            // in an outer call that a signal handler interrupted; that call will see for itself.
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
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::IntoRawFd;

    fn pair() -> (Socket, UdpSocket) {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        // SAFETY: the descriptor was just given up.
        let receiver = unsafe { Socket::adopt(receiver.into_raw_fd(), None, None, None) };
        (receiver.unwrap(), sender)
    }

    fn receive(fd: BorrowedFd<'_>, _hung_up: bool) -> io::Result<usize> {
        let mut buffer = [0; 64];
        sys::recv_from(fd, &mut sys::RecvSlice::new(&mut buffer), None, libc::MSG_DONTWAIT)
    }

    #[test]
    fn a_datagram_ends_the_wait() {
        let (receiver, sender) = pair();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                Waiting::new(&receiver).run(Interest::Read, Deadline::NEVER, None, receive)
            });
            sender.send(b"seven..").unwrap();
            assert_eq!(waiting.join().unwrap().unwrap(), 7);
        });
    }

    #[test]
    fn the_deadline_ends_the_wait_asleep_and_awake() {
        let (receiver, _sender) = pair();
        let timeout = Duration::from_millis(5);
        for spin in [None, Some(Instant::now() + Duration::from_secs(60))] {
            let started = Instant::now();
            let deadline = Deadline::after(timeout);
            let result = Waiting::new(&receiver).run(Interest::Read, deadline, spin, receive);
            assert!(matches!(result, Err(Stop::TimedOut)), "{result:?}");
            assert!(started.elapsed() >= timeout);
        }
    }

    #[test]
    fn spinning_gives_signal_handlers_a_turn_and_ends_by_itself() {
        let (receiver, _sender) = pair();
        let long = Some(Instant::now() + Duration::from_secs(60));
        let result = Waiting::new(&receiver).run(Interest::Read, Deadline::NEVER, long, receive);
        let Err(Stop::Failed(error)) = result else { panic!("{result:?}") };
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        let past = Some(Instant::now());
        let deadline = Deadline::after(Duration::from_millis(5));
        let result = Waiting::new(&receiver).run(Interest::Read, deadline, past, receive);
        assert!(matches!(result, Err(Stop::TimedOut)), "{result:?}");
    }

    #[test]
    fn a_close_wakes_every_waiter() {
        let (receiver, _sender) = pair();
        std::thread::scope(|scope| {
            let waiters: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        Waiting::new(&receiver).run(Interest::Read, Deadline::NEVER, None, receive)
                    })
                })
                .collect();
            while receiver.descriptor().waiters() < 3 {
                std::thread::yield_now();
            }
            receiver.descriptor().close().unwrap();
            for waiter in waiters {
                assert!(matches!(waiter.join().unwrap(), Err(Stop::Closed)));
            }
        });
    }

    #[test]
    fn a_wake_that_the_flag_does_not_know_of_ends_one_sleep_only() {
        let (receiver, _sender) = pair();
        let waiting = Waiting::new(&receiver);
        // As two wakes leave it, of which the second writes after the first was cleared.
        waiting.waker.as_ref().unwrap().signal_without_flag();
        let mut attempts = 0;
        let deadline = Deadline::after(Duration::from_millis(20));
        let result = waiting.run(Interest::Read, deadline, None, |fd, hung_up| {
            attempts += 1;
            receive(fd, hung_up)
        });
        assert!(matches!(result, Err(Stop::TimedOut)), "{result:?}");
        assert_eq!(attempts, 1);
    }

    #[test]
    fn a_wake_asks_for_another_attempt() {
        let (receiver, _sender) = pair();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                Waiting::new(&receiver).run(Interest::Read, Deadline::NEVER, None, |fd, hung_up| {
                    let over = is_over.load(Ordering::Relaxed);
                    if over { Ok(0) } else { receive(fd, hung_up) }
                })
            });
            while receiver.descriptor().waiters() < 1 {
                std::thread::yield_now();
            }
            is_over.store(true, Ordering::Relaxed);
            receiver.descriptor().wake();
            assert_eq!(waiting.join().unwrap().unwrap(), 0);
        });
    }

    #[test]
    fn a_byte_of_a_signal_handler_interrupts_even_before_the_wait() {
        let (receiver, _sender) = pair();
        let (reader, mut writer) = std::os::unix::net::UnixStream::pair().unwrap();
        reader.set_nonblocking(true).unwrap();
        std::io::Write::write_all(&mut writer, b"ab").unwrap();
        // SAFETY: it is open until the end.
        let waiting = unsafe { Waiting::new(&receiver).signalled_by(reader.as_raw_fd()) };
        let result = waiting.run(Interest::Read, Deadline::NEVER, None, receive);
        let Err(Stop::Failed(error)) = result else { panic!("{result:?}") };
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        let deadline = Deadline::after(Duration::from_millis(5));
        let result = waiting.run(Interest::Read, deadline, None, receive);
        assert!(matches!(result, Err(Stop::TimedOut)), "{result:?}");
    }

    #[test]
    fn entries_of_the_error_queue_neither_burn_the_core_nor_get_lost() {
        let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (waiter, _sender) = pair();
        waiter.set_int_option(libc::IPPROTO_IP, libc::IP_RECVERR, 1).unwrap();
        let waiting = Waiting::new(&waiter);
        let fd = waiter.descriptor().enter().unwrap();
        let payload = crate::net::SendSlice::new(b"to nobody");
        waiter.send(fd.as_fd(), payload, Some(&nobody.into()), 0).unwrap();
        let deadline = Deadline::after(Duration::from_millis(50));
        let refused = waiting.run(Interest::Read, Deadline::NEVER, None, receive);
        let Err(Stop::Failed(error)) = refused else { panic!("{refused:?}") };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let mut attempts = 0;
        let result = waiting.run(Interest::Read, deadline, None, |fd, hung_up| {
            attempts += 1;
            receive(fd, hung_up)
        });
        assert!(matches!(result, Err(Stop::TimedOut)), "{result:?}");
        assert!(attempts < 10, "{attempts} attempts in 50 ms");
        let entry = waiter.take_error_message(fd.as_fd()).unwrap();
        assert_eq!(entry.peer.ip(), Some(nobody));
        assert_eq!(entry.decode().unwrap().errno, libc::ECONNREFUSED);
    }

    /// A socket with `IP_RECVERR`, and a function that makes an entry in its error queue.
    fn with_errors() -> (Socket, impl Fn(BorrowedFd<'_>)) {
        let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (waiter, _sender) = pair();
        waiter.set_int_option(libc::IPPROTO_IP, libc::IP_RECVERR, 1).unwrap();
        let fail = move |fd: BorrowedFd<'_>| {
            // An earlier one's error keeps a datagram from leaving, once.
            while sys::send_to(fd, sys::SendSlice::new(b"x"), Some(&nobody.into()), 0).is_err() {}
        };
        (waiter, fail)
    }

    #[test]
    fn an_error_queue_that_fills_again_and_again_gives_signal_handlers_a_turn() {
        let (waiter, fail) = with_errors();
        waiter.with(|fd| Ok(fail(fd))).unwrap();
        let deadline = Deadline::after(Duration::from_secs(10));
        let result = Waiting::new(&waiter).run(Interest::Read, deadline, None, |fd, _| {
            fail(fd);
            std::thread::sleep(2 * INSTANT); // as if there were many
            io::Result::<()>::Err(io::ErrorKind::WouldBlock.into())
        });
        let Err(Stop::Failed(error)) = result else { panic!("{result:?}") };
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn a_wait_for_an_error_finds_one_that_another_thread_keeps() {
        let (waiter, fail) = with_errors();
        let take = |fd: BorrowedFd<'_>, _| waiter.take_error_message(fd).map(drop);
        let deadline = Deadline::after(Duration::from_secs(10));
        let keep = |fd: BorrowedFd<'_>| {
            fail(fd);
            let kept = waiter.keep_error_messages(fd);
            Ok(kept)
        };
        assert_eq!(waiter.with(keep).unwrap(), 1);
        Waiting::new(&waiter).run(Interest::Error, deadline, None, take).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                // It is too late for the entry each time, as if it had not looked in between.
                let mut attempts = 0;
                Waiting::new(&waiter).run(Interest::Error, deadline, None, |fd, hung_up| {
                    attempts += 1;
                    if attempts == 1 {
                        Err(io::ErrorKind::WouldBlock.into())
                    } else {
                        take(fd, hung_up)
                    }
                })
            });
            while waiter.descriptor().waiters() < 1 {
                std::thread::yield_now();
            }
            waiter.with(keep).unwrap();
            waiting.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_sleep_after_spinning_gives_signal_handlers_a_turn() {
        let (receiver, _sender) = pair();
        let waiting = Waiting::new(&receiver);
        let spin = Instant::now() + Duration::from_millis(5);
        // The deadline of the first run comes while it spins; the second one does not spin.
        let soon = Deadline::after(Duration::from_millis(1));
        let result = waiting.run(Interest::Read, soon, Some(spin), receive);
        assert!(matches!(result, Err(Stop::TimedOut)), "{result:?}");
        let deadline = Deadline::after(Duration::from_secs(10));
        let result = waiting.run(Interest::Read, deadline, None, receive);
        let Err(Stop::Failed(error)) = result else { panic!("{result:?}") };
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn false_readiness_does_not_burn_the_core() {
        // An unconnected AF_UNIX socket always polls writable; only the peer knows that it is full.
        let (receiver, sender) = pair();
        sender.send(b"x").unwrap();
        let mut attempts = 0;
        let deadline = Deadline::after(Duration::from_millis(50));
        let result = Waiting::new(&receiver).run(Interest::Read, deadline, None, |_, _| {
            attempts += 1;
            io::Result::<()>::Err(io::ErrorKind::WouldBlock.into())
        });
        assert!(matches!(result, Err(Stop::TimedOut)), "{result:?}");
        assert!(attempts < 100, "{attempts} attempts in 50 ms");
    }

    #[test]
    fn false_readiness_gives_signal_handlers_a_turn() {
        // No sleep is interrupted here: as if each signal arrived between two of them.
        let (receiver, sender) = pair();
        sender.send(b"x").unwrap();
        let deadline = Deadline::after(Duration::from_secs(10));
        let result = Waiting::new(&receiver).run(Interest::Read, deadline, None, |_, _| {
            io::Result::<()>::Err(io::ErrorKind::WouldBlock.into())
        });
        let Err(Stop::Failed(error)) = result else { panic!("{result:?}") };
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }
}
