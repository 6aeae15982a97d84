//! Datagrams that are queued to be sent in batches, and retried while the socket is full.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::thread::LocalKey;
use std::time::Instant;

use super::address::Address;
use super::meta::{Source, may_be_of_source};
use super::send_queue::{SendQueue, Sent};
use super::socket::error_queue::PAYLOAD_LEN;
use super::sys::{SendSlice, no_memory, with_room};

/// Datagrams in the order in which they were accepted.
pub struct SendBacklog<P> {
    pub(super) datagrams: VecDeque<Queued<P>>,
    pub(super) bytes: usize,
}

/// The type that holds a datagram's payload in a backlog.
pub trait Payload: AsRef<[u8]> + Sized + 'static {
    /// The calling thread's spare memory for a backlog. A backlog has memory only while it has
    /// datagrams, so the backlogs of an event loop, which are flushed one after another, share it.
    fn spare() -> &'static LocalKey<Cell<Spare<Self>>>;
}

/// Spare memory for a backlog.
pub struct Spare<P>(VecDeque<Queued<P>>);

impl<P> Spare<P> {
    /// No allocated memory.
    pub const NONE: Self = Self(VecDeque::new());
}

impl<P> Default for Spare<P> {
    fn default() -> Self {
        Self::NONE
    }
}

pub(super) struct Queued<P> {
    pub(super) data: P,
    pub(super) to: Option<Address>,
    source: Option<Source>,
    /// The number of the DTLS session that it is a reply in. If another one has begun before the step
    /// that sends it, it is dropped.
    session: Option<u64>,
    /// When it began to wait for room in the socket's buffer, in a backlog that is limited.
    pub(super) since: Option<Instant>,
}

/// The destination of a backlog's datagrams.
pub trait Outlet {
    /// Sends as many datagrams as one call can, without waiting.
    fn send(&mut self, queue: &mut SendQueue<'_>) -> io::Result<Sent>;

    /// Called when there is no room: sends the next datagrams when there is. `EAGAIN` drops the
    /// next one. `None` leaves all datagrams for later.
    fn wait(&mut self, queue: &mut SendQueue<'_>) -> Option<io::Result<Sent>>;

    /// Whether the DTLS session with a peer is a later one than that with a number.
    fn has_later_session(&self, _peer: &Address, _number: u64) -> bool {
        false
    }

    /// Whether an error may be about a datagram that was sent earlier.
    fn may_be_of_earlier(&self, error: &io::Error) -> bool;

    /// Whether all datagrams wait in one queue. Otherwise each peer has one, which may be full.
    fn has_one_queue(&self) -> bool;

    /// Takes the error that the kernel would report next, so that it does not spoil the next send.
    fn clear_error(&mut self);

    /// Forgets a peer's reply source, because nothing can be sent from that address.
    fn forget_source(&mut self, peer: &Address);
}

/// The result of a flush.
#[derive(Debug, Default)]
pub struct Flushed {
    /// Errors of datagrams that were not sent, or of earlier ones.
    pub errors: Vec<Refused>,
    /// How many datagrams were dropped. Some of them may not be among the errors.
    pub lost: usize,
    /// Whether the socket's buffer is full, so that the remaining datagrams wait.
    pub is_full: bool,
}

/// An error, and the datagram whose send returned it.
#[derive(Debug)]
pub struct Refused {
    /// The error.
    pub error: io::Error,
    /// The datagram's destination.
    pub to: Option<Address>,
    /// The length of its payload.
    pub len: usize,
    /// Of a lost datagram, the beginning of its payload, as much as the kernel's error queue keeps.
    pub payload: Vec<u8>,
    /// Whether the datagram was dropped. If not, the error was about an earlier one.
    pub is_lost: bool,
}

/// How often a datagram is retried after an error that may be about an earlier one. ICMP messages may
/// arrive faster than the datagrams leave, and none of them is about this datagram. If another process
/// reads the error queue of a shared socket, each entry that it takes sets the error of the next one.
const RETRIES: u32 = 64;
/// The maximum number of datagrams to hand to the kernel at once. It keeps a long backlog that is
/// sent in small steps from being laid out completely for each step.
const STEP: usize = 512;

impl<P> Default for SendBacklog<P> {
    fn default() -> Self {
        Self { datagrams: VecDeque::new(), bytes: 0 }
    }
}

impl<P: Payload> SendBacklog<P> {
    /// Appends a datagram. Fails only if memory allocation fails.
    pub fn push(&mut self, data: P, to: Option<Address>, source: Option<Source>) -> io::Result<()> {
        self.push_in(None, data, to, source)
    }

    /// Appends a reply to a datagram that came through the DTLS session with this number.
    pub fn push_in(
        &mut self,
        session: Option<u64>,
        data: P,
        to: Option<Address>,
        source: Option<Source>,
    ) -> io::Result<()> {
        if self.datagrams.capacity() == 0 {
            self.datagrams = P::spare().take().0;
        }
        let more = (self.len() + 1) * size_of::<Queued<P>>();
        self.datagrams.try_reserve(1).map_err(|_| no_memory(more, "datagrams to be sent"))?;
        self.bytes += data.as_ref().len();
        self.datagrams.push_back(Queued { data, to, source, session, since: None });
        Ok(())
    }

    /// Drops replies in DTLS sessions that others have followed, if the next step would send one;
    /// returns how many those are.
    fn drop_superseded(&mut self, outlet: &impl Outlet) -> usize {
        let is_superseded = |queued: &Queued<P>| match (&queued.to, queued.session) {
            (Some(to), Some(session)) => outlet.has_later_session(to, session),
            _ => false,
        };
        // Where the socket is full, flushes are many, and must not go through all that wait.
        if !self.datagrams.iter().take(STEP).any(is_superseded) {
            return 0;
        }
        let before = self.len();
        self.datagrams.retain(|queued| !is_superseded(queued));
        self.bytes = self.datagrams.iter().map(|queued| queued.data.as_ref().len()).sum();
        before - self.len()
    }

    /// The number of datagrams.
    pub fn len(&self) -> usize {
        self.datagrams.len()
    }

    /// Whether the backlog is empty.
    pub fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// The total size of the payloads in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Sends as many datagrams as possible. Drops a datagram that is refused, and sends the others.
    ///
    /// On a socket that receives ICMP errors, an error may be about a datagram that was sent
    /// earlier; the kernel returns it instead of sending. Therefore each datagram is retried, up to
    /// [`RETRIES`] times.
    ///
    /// A reply in a DTLS session that another one with the same peer has followed is dropped, and
    /// counted as lost.
    ///
    /// If a datagram's source address no longer exists on this machine, it is sent from the default
    /// one. If that succeeds, the source is forgotten for this peer.
    pub fn flush(&mut self, outlet: &mut impl Outlet) -> Flushed {
        let (mut flushed, mut superseded) = (Flushed::default(), 0);
        while !self.is_empty() && !flushed.is_full {
            superseded += self.drop_superseded(outlet);
            let done = self.flush_step(outlet, &mut flushed);
            for queued in self.datagrams.drain(..done) {
                self.bytes -= queued.data.as_ref().len();
            }
        }
        let lost = flushed.errors.iter().filter(|refused| refused.is_lost).count();
        flushed.lost = lost + superseded;
        if self.is_empty() {
            let _ = P::spare().try_with(|spare| {
                spare.set(Spare(std::mem::take(&mut self.datagrams)));
            });
        }
        flushed
    }

    /// Sends some of the first datagrams; returns how many were sent or dropped: 0 only if the
    /// socket is full.
    fn flush_step(&self, outlet: &mut impl Outlet, flushed: &mut Flushed) -> usize {
        let mut queue = match self.lay_out() {
            Ok(queue) => queue,
            Err(error) => {
                flushed.errors.extend(self.refused(0, error, true));
                return 1;
            }
        };
        let (mut retried, mut first_errno, mut moved) = (None, None, None);
        while !queue.is_empty() {
            let mut result = outlet.send(&mut queue);
            if result.as_ref().is_err_and(is_temporary) {
                let Some(later) = outlet.wait(&mut queue) else {
                    flushed.is_full = true;
                    break;
                };
                result = later;
            }
            let Err(error) = result else {
                if let Some(peer) = moved.take() {
                    outlet.forget_source(peer);
                }
                continue;
            };
            let position = queue.position();
            let retries = retried.filter(|(at, _)| *at == position).map_or(0, |(_, count)| count);
            if outlet.may_be_of_earlier(&error) && retries < RETRIES {
                if retries == 0 {
                    first_errno = error.raw_os_error();
                    flushed.errors.extend(self.refused(position, error, false));
                }
                retried = Some((position, retries + 1));
                outlet.clear_error();
                continue;
            }
            let is_the_same = retries > 0
                && first_errno.take_if(|errno| Some(*errno) == error.raw_os_error()).is_some();
            if is_the_same && error.kind() != io::ErrorKind::ConnectionRefused {
                // The first error was about this datagram after all, not about an earlier one.
                flushed.errors.pop();
            }
            if may_be_of_source(&error) && queue.forget_source() {
                // Forget the source only if the datagram can be sent without it. A peer that is
                // unreachable must not cause replies to others from an unexpected address.
                moved = self.datagrams.get(position).and_then(|queued| queued.to.as_ref());
            } else {
                moved = None;
                self.give_up(&mut queue, error, flushed);
            }
        }
        queue.position()
    }

    /// Drops the datagrams that an error is about.
    fn give_up(&self, queue: &mut SendQueue<'_>, error: io::Error, flushed: &mut Flushed) {
        let position = queue.position();
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let mut error = Some(error);
        for index in position..position + queue.skip() {
            let error = error.take().unwrap_or_else(|| io::Error::from_raw_os_error(errno));
            flushed.errors.extend(self.refused(index, error, true));
        }
    }

    /// Lays out the first datagrams as a queue for the kernel: as many as fit into a step and into
    /// the available memory.
    fn lay_out(&self) -> io::Result<SendQueue<'_>> {
        let mut queue = SendQueue::with_room(self.len().min(STEP))?;
        for queued in self.datagrams.iter().take(STEP) {
            let payload = SendSlice::new(queued.data.as_ref());
            match queue.push(payload, queued.to.as_ref(), queued.source) {
                Err(error) if queue.is_empty() => return Err(error),
                Err(_) => break,
                Ok(()) => {}
            }
        }
        Ok(queue)
    }

    /// Describes a datagram that was refused.
    pub(super) fn refused(&self, index: usize, error: io::Error, is_lost: bool) -> Option<Refused> {
        let queued = self.datagrams.get(index)?;
        let data = queued.data.as_ref();
        let kept = if is_lost { data.len().min(PAYLOAD_LEN) } else { 0 };
        let mut payload = with_room(kept, "the payload of a lost datagram").unwrap_or_default();
        if payload.capacity() >= kept {
            payload.extend_from_slice(&data[..kept]);
        }
        Some(Refused { error, to: queued.to, len: data.len(), payload, is_lost })
    }
}

/// Whether repeating the same call later may succeed.
fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use std::num::NonZero;

    thread_local! {
        static SPARE: Cell<Spare<Vec<u8>>> = const { Cell::new(Spare::NONE) };
    }

    impl Payload for Vec<u8> {
        fn spare() -> &'static LocalKey<Cell<Spare<Self>>> {
            &SPARE
        }
    }

    /// A kernel that accepts one datagram per call unless the next answer is an error, and records
    /// the datagrams.
    #[derive(Default)]
    struct ScriptedOutlet {
        answers: VecDeque<Option<i32>>,
        /// The result of waiting; `None` if waiting is not possible.
        waits: Option<i32>,
        taken: usize,
        calls: usize,
        cleared: usize,
        forgotten: Vec<Address>,
        /// The number of the peers' DTLS sessions, and how often that was asked for.
        session: u64,
        asked: Cell<usize>,
    }

    impl ScriptedOutlet {
        fn answering(answers: &[Option<i32>]) -> Self {
            Self { answers: answers.iter().copied().collect(), ..Self::default() }
        }
    }

    impl Outlet for ScriptedOutlet {
        fn send(&mut self, queue: &mut SendQueue<'_>) -> io::Result<Sent> {
            self.calls += 1;
            if let Some(errno) = self.answers.pop_front().flatten() {
                return Err(io::Error::from_raw_os_error(errno));
            }
            self.taken += 1;
            queue.skip();
            Ok(Sent { datagrams: NonZero::<usize>::MIN, bytes: 1 })
        }

        fn wait(&mut self, _: &mut SendQueue<'_>) -> Option<io::Result<Sent>> {
            Some(Err(io::Error::from_raw_os_error(self.waits?)))
        }

        fn has_later_session(&self, _: &Address, number: u64) -> bool {
            self.asked.set(self.asked.get() + 1);
            self.session > number
        }

        fn may_be_of_earlier(&self, error: &io::Error) -> bool {
            error.kind() == io::ErrorKind::ConnectionRefused
        }

        fn has_one_queue(&self) -> bool {
            true
        }

        fn clear_error(&mut self) {
            self.cleared += 1;
        }

        fn forget_source(&mut self, peer: &Address) {
            self.forgotten.push(*peer);
        }
    }

    fn backlog(count: usize, source: Option<Source>) -> SendBacklog<Vec<u8>> {
        let mut backlog = SendBacklog::default();
        for port in 1..=count {
            let to = SocketAddr::from(([127, 0, 0, 1], port as u16)).into();
            backlog.push(vec![7; port], Some(to), source).unwrap();
        }
        backlog
    }

    fn flush(backlog: &mut SendBacklog<Vec<u8>>, kernel: &mut ScriptedOutlet) -> Flushed {
        backlog.flush(kernel)
    }

    fn errors(flushed: &Flushed) -> Vec<(Option<i32>, usize, bool)> {
        let told = |refused: &Refused| (refused.error.raw_os_error(), refused.len, refused.is_lost);
        assert_eq!(flushed.lost, flushed.errors.iter().filter(|refused| refused.is_lost).count());
        flushed.errors.iter().map(told).collect()
    }

    #[test]
    fn all_are_sent_and_the_memory_is_reused() {
        let mut backlog = backlog(3, None);
        assert_eq!((backlog.len(), backlog.bytes()), (3, 6));
        let mut kernel = ScriptedOutlet::default();
        let flushed = flush(&mut backlog, &mut kernel);
        assert!(!flushed.is_full && flushed.errors.is_empty() && backlog.is_empty());
        assert_eq!((kernel.taken, backlog.bytes(), backlog.datagrams.capacity()), (3, 0, 0));
        assert!(SPARE.take().0.capacity() >= 3);
    }

    #[test]
    fn only_replies_that_come_next_are_checked_for_a_later_session() {
        let mut backlog = backlog(2 * STEP, None);
        let session_of = |at| Some(at as u64 / 2);
        (0..).zip(&mut backlog.datagrams).for_each(|(at, queued)| queued.session = session_of(at));
        let mut kernel = ScriptedOutlet::answering(&[Some(libc::EAGAIN)]);
        flush(&mut backlog, &mut kernel);
        assert_eq!((kernel.asked.get(), backlog.len()), (STEP, 2 * STEP));
        kernel.session = 100; // it is later than those of 200 replies
        assert_eq!(flush(&mut backlog, &mut kernel).lost, 200);
        assert_eq!((kernel.taken, backlog.len(), backlog.bytes()), (2 * STEP - 200, 0, 0));
    }

    #[test]
    fn datagrams_without_room_stay() {
        for errno in [libc::EAGAIN, libc::EINTR] {
            let mut backlog = backlog(3, None);
            let mut kernel = ScriptedOutlet::answering(&[None, Some(errno)]);
            let flushed = flush(&mut backlog, &mut kernel);
            assert!(flushed.is_full && flushed.errors.is_empty());
            assert_eq!((backlog.len(), backlog.bytes()), (2, 5));
        }
    }

    #[test]
    fn datagrams_that_wait_in_vain_are_dropped() {
        let mut backlog = backlog(3, None);
        let always = [Some(libc::EAGAIN); 10];
        let mut kernel =
            ScriptedOutlet { waits: Some(libc::EAGAIN), ..ScriptedOutlet::answering(&always) };
        let flushed = flush(&mut backlog, &mut kernel);
        let lost = [1, 2, 3].map(|len| (Some(libc::EAGAIN), len, true));
        assert_eq!((errors(&flushed), backlog.len(), kernel.calls), (lost.to_vec(), 0, 3));
    }

    #[test]
    fn errors_about_earlier_datagrams_lose_none_unless_they_persist() {
        let refused = Some(libc::ECONNREFUSED);
        let mut answers = vec![None, refused, refused, None];
        answers.extend([refused; 1 + RETRIES as usize]);
        let mut kernel = ScriptedOutlet::answering(&answers);
        let flushed = flush(&mut backlog(3, None), &mut kernel);
        let (told, lost) = ((refused, 2, false), (refused, 3, true));
        assert_eq!(errors(&flushed), [told, (refused, 3, false), lost]);
        assert_eq!((kernel.taken, kernel.calls), (2, answers.len()));
        // The kernel may have the next one ready.
        assert_eq!(kernel.cleared, 2 + RETRIES as usize);
        assert_eq!(flushed.errors[0].payload.len() + flushed.errors[1].payload.len(), 0);
        assert_eq!(flushed.errors[2].payload, [7; 3]);
    }

    #[test]
    fn a_source_is_forgotten_if_the_datagram_can_be_sent_without_it() {
        let source = Source { address: [192, 0, 2, 1].into(), interface: 0 };
        let wrong = Some(libc::EINVAL);
        let mut kernel = ScriptedOutlet::answering(&[wrong, None, wrong, wrong]);
        let flushed = flush(&mut backlog(3, Some(source)), &mut kernel);
        assert_eq!(errors(&flushed), [(wrong, 2, true)]);
        let ports: Vec<_> = kernel.forgotten.iter().map(|peer| peer.ip().unwrap().port()).collect();
        assert_eq!((ports, kernel.taken), (vec![1], 2));
    }

    #[test]
    fn many_errors_about_earlier_datagrams_cost_none() {
        let mut kernel = ScriptedOutlet::answering(&[Some(libc::ECONNREFUSED); 40]);
        let flushed = flush(&mut backlog(3, None), &mut kernel);
        assert!(flushed.errors.iter().all(|refused| !refused.is_lost));
        assert_eq!(kernel.taken, 3);
    }

    #[test]
    fn a_flush_ends_for_every_repeated_result() {
        for errno in 1..140 {
            let source = Source { address: [192, 0, 2, 1].into(), interface: 0 };
            for source in [None, Some(source)] {
                for waits in [None, Some(libc::EAGAIN), Some(libc::EBADF)] {
                    let mut backlog = backlog(600, source);
                    let answers = vec![Some(errno); (2 + RETRIES as usize) * 600];
                    let mut kernel =
                        ScriptedOutlet { waits, ..ScriptedOutlet::answering(&answers) };
                    let flushed = flush(&mut backlog, &mut kernel);
                    let lost = flushed.errors.iter().filter(|refused| refused.is_lost).count();
                    assert!(kernel.calls <= (2 + RETRIES as usize) * 600 && kernel.taken == 0);
                    assert_eq!(lost + backlog.len(), 600);
                    assert_eq!(flushed.is_full, !backlog.is_empty());
                }
            }
        }
    }
}
