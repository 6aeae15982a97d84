//! Sending many datagrams with one system call.

use std::ffi::c_int;
use std::io;
use std::iter;
use std::os::fd::BorrowedFd;

use super::address::Address;
use super::cmsg::ControlBuffer;
use super::meta::Source;
use super::offload::{LARGEST_RUN, LONGEST_RUN, Offload, may_refuse_run};
use super::sys::{self, Outgoing, SEND_MESSAGES, SendSlice, make_room, with_room};

/// Datagrams on their way out, in order.
///
/// Consecutive datagrams of one size to one peer (the last may be shorter) leave as one send that
/// the kernel cuts up. A run that is refused is sent again, datagram by datagram.
#[derive(Default)]
pub struct SendQueue<'a> {
    datagrams: Vec<Datagram<'a>>,
    addresses: Vec<Address>,
    sources: Vec<Source>,
    /// The first datagram that has not left.
    next: usize,
    /// Datagrams from this one on do not leave yet, where there is a limit.
    limit: Option<usize>,
    /// Datagrams before this one leave alone: they belong to a run that was refused.
    alone_until: usize,
    refused: Option<(io::Error, usize)>,
    /// Kept for its memory.
    slices: Vec<SendSlice<'a>>,
}

#[derive(Clone, Copy)]
struct Datagram<'a> {
    payload: SendSlice<'a>,
    to: u32,
    source: u32,
}

/// The place of what is not there in `addresses` and `sources`.
const NONE: u32 = u32::MAX;

/// What left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Datagrams.
    pub datagrams: usize,
    /// Bytes of payload.
    pub bytes: usize,
}

/// Consecutive datagrams that one message carries.
#[derive(Clone, Copy)]
struct Run {
    datagrams: usize,
    bytes: usize,
    first_slice: usize,
    slices: usize,
    control: ControlBuffer,
}

impl<'a> SendQueue<'a> {
    /// An empty queue with room for `datagrams`.
    pub fn with_room(datagrams: usize) -> io::Result<Self> {
        let datagrams = with_room(datagrams, "datagrams to be sent")?;
        Ok(Self { datagrams, ..Self::default() })
    }

    /// Appends a datagram to a peer, or, without an address, to the connected one. An error is want
    /// of memory.
    pub fn push(
        &mut self,
        payload: SendSlice<'a>,
        to: Option<&Address>,
        source: Option<Source>,
    ) -> io::Result<()> {
        self.push_all(iter::once(payload), to, source)
    }

    /// Appends datagrams that have one peer and one source.
    pub fn push_all(
        &mut self,
        payloads: impl ExactSizeIterator<Item = SendSlice<'a>>,
        to: Option<&Address>,
        source: Option<Source>,
    ) -> io::Result<()> {
        make_room(&mut self.datagrams, payloads.len(), "datagrams to be sent")?;
        let to = to.map_or(Ok(NONE), |to| place(&mut self.addresses, *to))?;
        let source = source.map_or(Ok(NONE), |source| place(&mut self.sources, source))?;
        self.datagrams.extend(payloads.map(|payload| Datagram { payload, to, source }));
        Ok(())
    }

    /// How many datagrams have not left.
    pub fn len(&self) -> usize {
        self.datagrams.len() - self.next
    }

    /// Whether all have left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many datagrams have left or were skipped: the index of the one that is next.
    pub fn position(&self) -> usize {
        self.next
    }

    /// Where the next datagram goes, if it has an address of its own.
    pub fn next_address(&self) -> Option<&Address> {
        self.address(self.datagrams.get(self.next)?)
    }

    /// Gives the next datagram up.
    pub fn skip(&mut self) {
        self.next += 1;
    }

    /// Lets the next datagram leave from where the routes say; false where it was to do so already.
    /// Those behind it may have had the same address, and nothing says that it is wrong for them.
    pub fn forget_source(&mut self) -> bool {
        let next = self.datagrams.get_mut(self.next);
        next.is_some_and(|datagram| std::mem::replace(&mut datagram.source, NONE) != NONE)
    }

    /// Takes all datagrams out, for new ones.
    pub fn clear(&mut self) {
        self.datagrams.clear();
        self.addresses.clear();
        self.sources.clear();
        (self.next, self.limit, self.alone_until, self.refused) = (0, None, 0, None);
    }

    /// Lets only those of the next datagrams leave that `may_leave`, given where they go and how long
    /// they are, up to the first that may not. Says how many.
    pub(super) fn limit(&mut self, may_leave: impl Fn(Option<&Address>, usize) -> bool) -> usize {
        let next = self.datagrams[self.next..].iter().take(SEND_MESSAGES * LONGEST_RUN);
        let leaving = next
            .take_while(|datagram| may_leave(self.address(datagram), datagram.payload.len()))
            .count();
        self.limit = Some(self.next + leaving);
        leaving
    }

    /// Ends the limit, and tells of the datagrams before it that have not left.
    pub(super) fn unlimit(&mut self, mut stays: impl FnMut(Option<&Address>, usize)) {
        let Some(limit) = self.limit.take() else { return };
        for datagram in &self.datagrams[self.next..limit] {
            stays(self.address(datagram), datagram.payload.len());
        }
    }

    /// Sends as many datagrams as one call takes, without waiting. An error is about the next
    /// datagram; it means that nothing has left.
    pub fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        offload: &Offload,
        flags: c_int,
    ) -> io::Result<Sent> {
        // With MSG_MORE the kernel joins what follows to a datagram that is still open.
        let longest = if flags & libc::MSG_MORE == 0 { offload.longest(fd) } else { 0 };
        self.send_with(offload, longest, |messages| sys::send_messages(fd, messages, flags))
    }

    fn send_with(
        &mut self,
        offload: &Offload,
        longest: usize,
        mut transmit: impl FnMut(&mut dyn Iterator<Item = Outgoing<'_>>) -> io::Result<usize>,
    ) -> io::Result<Sent> {
        loop {
            let runs = self.next_runs(longest)?;
            let result = transmit(&mut self.outgoing(&runs));
            match result {
                Ok(messages) => {
                    if let Some((error, len)) = self.refused.take() {
                        // Its datagrams leave alone: it was the run that did not please.
                        offload.refuse(&error, len);
                    }
                    let mut sent = Sent::default();
                    for run in &runs[..messages] {
                        sent.datagrams += run.datagrams;
                        sent.bytes += run.bytes;
                    }
                    self.next += sent.datagrams;
                    return Ok(sent);
                }
                Err(error) if runs[0].datagrams > 1 && may_refuse_run(&error) => {
                    self.alone_until = self.next + runs[0].datagrams;
                    self.refused = Some((error, self.datagrams[self.next].payload.len()));
                }
                Err(error) => {
                    self.refused = None;
                    return Err(error);
                }
            }
        }
    }

    /// Groups the next datagrams into as many messages as one call takes.
    fn next_runs(&mut self, longest: usize) -> io::Result<Vec<Run>> {
        self.slices.clear();
        let most = self.len().min(SEND_MESSAGES * LONGEST_RUN);
        make_room(&mut self.slices, most, "a system call's datagrams")?;
        let mut runs = with_room(SEND_MESSAGES, "a system call's messages")?;
        let mut at = self.next;
        while at < self.end() && runs.len() < SEND_MESSAGES {
            let longest = if at < self.alone_until { 0 } else { longest };
            let first_slice = self.slices.len();
            let (datagrams, bytes) = self.gather_run(at, longest);
            let members = &self.datagrams[at..at + datagrams];
            let mut control = ControlBuffer::EMPTY;
            if let Some(source) = self.sources.get(members[0].source as usize) {
                source.encode(&mut control);
            }
            if datagrams > 1 {
                let segment = (members[0].payload.len() as u16).to_ne_bytes();
                control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment);
            }
            let slices = self.slices.len() - first_slice;
            runs.push(Run { datagrams, bytes, first_slice, slices, control });
            at += datagrams;
        }
        Ok(runs)
    }

    /// Gathers the payloads of as many datagrams from `at` on as may leave as one: equal in size,
    /// the last perhaps shorter, none empty, to one peer and from one source. Says how many those
    /// are, and of how many bytes.
    fn gather_run(&mut self, at: usize, longest: usize) -> (usize, usize) {
        let first = &self.datagrams[at];
        let len = first.payload.len();
        let most = if len == 0 || len > longest { 1 } else { LONGEST_RUN.min(LARGEST_RUN / len) };
        let (mut count, mut bytes) = (1, len);
        // Payloads that lie one after the other in memory need one entry of the list.
        let mut adjacent = first.payload;
        for datagram in self.datagrams[at + 1..self.end()].iter().take(most.saturating_sub(1)) {
            let next_len = datagram.payload.len();
            if (datagram.to, datagram.source) != (first.to, first.source)
                || next_len == 0
                || next_len > len
            {
                break;
            }
            if !adjacent.extend(datagram.payload) {
                self.slices.push(adjacent);
                adjacent = datagram.payload;
            }
            count += 1;
            bytes += next_len;
            if next_len < len {
                break;
            }
        }
        self.slices.push(adjacent);
        (count, bytes)
    }

    fn end(&self) -> usize {
        self.limit.unwrap_or(self.datagrams.len())
    }

    fn outgoing<'b>(&'b self, runs: &'b [Run]) -> impl Iterator<Item = Outgoing<'b>> {
        let mut at = self.next;
        runs.iter().map(move |run| {
            let to = self.address(&self.datagrams[at]);
            at += run.datagrams;
            let memory = &self.slices[run.first_slice..][..run.slices];
            Outgoing { memory, to, control: &run.control }
        })
    }

    fn address(&self, datagram: &Datagram<'_>) -> Option<&Address> {
        self.addresses.get(datagram.to as usize)
    }
}

/// The place of a value that is most often the last one again.
fn place<T: PartialEq>(values: &mut Vec<T>, value: T) -> io::Result<u32> {
    if values.last() != Some(&value) {
        make_room(values, 1, "addresses")?;
        values.push(value);
    }
    Ok(values.len() as u32 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn peer(port: u16) -> Address {
        SocketAddr::from(([127, 0, 0, 1], port)).into()
    }

    /// A datagram that was refused, and why.
    struct Failure {
        index: usize,
        error: io::Error,
    }

    /// What a message was: its port, its segment size, and its length.
    type Seen = (Option<u16>, Option<usize>, usize);

    fn seen(message: &Outgoing<'_>) -> Seen {
        let segment = crate::net::cmsg::decode(message.control.as_bytes())
            .find(|control| control.level == libc::SOL_UDP)
            .map(|control| usize::from(u16::from_ne_bytes([control.data[0], control.data[1]])));
        let len = message.memory.iter().map(SendSlice::len).sum();
        (message.to.and_then(Address::ip).map(|ip| ip.port()), segment, len)
    }

    /// Sends everything with a kernel that answers as `answer` says, and returns what it saw.
    fn send_all(
        queue: &mut SendQueue<'_>,
        offload: &Offload,
        mut answer: impl FnMut(&[Seen]) -> io::Result<usize>,
    ) -> (Vec<Seen>, Vec<Failure>) {
        let (mut left, mut failures) = (Vec::new(), Vec::new());
        while !queue.is_empty() {
            let longest = offload.known().unwrap_or(LARGEST_RUN);
            let mut taken = Vec::new();
            let result = queue.send_with(offload, longest, |messages| {
                let messages: Vec<_> = messages.map(|message| seen(&message)).collect();
                let count = answer(&messages)?;
                taken.extend_from_slice(&messages[..count]);
                Ok(count)
            });
            left.extend(taken);
            if let Err(error) = result {
                failures.push(Failure { index: queue.position(), error });
                queue.skip();
            }
        }
        (left, failures)
    }

    fn queue<'a>(payloads: &[(&'a [u8], u16)]) -> SendQueue<'a> {
        let mut queue = SendQueue::with_room(payloads.len()).unwrap();
        for (payload, port) in payloads {
            queue.push(SendSlice::new(payload), Some(&peer(*port)), None).unwrap();
        }
        queue
    }

    #[allow(clippy::unnecessary_wraps)] // it stands in for a kernel that may fail
    fn all(messages: &[Seen]) -> io::Result<usize> {
        Ok(messages.len())
    }

    fn errno(errno: c_int) -> io::Error {
        io::Error::from_raw_os_error(errno)
    }

    #[test]
    fn one_datagram_forgets_its_source_and_those_behind_it_do_not() {
        let source = Source { address: [127, 0, 0, 1].into(), interface: 0 };
        let mut queue = SendQueue::default();
        for port in [1, 2] {
            queue.push(SendSlice::new(b"x"), Some(&peer(port)), Some(source)).unwrap();
        }
        assert!(queue.forget_source() && !queue.forget_source());
        let mut have_sources = Vec::new();
        let sent = queue.send_with(&Offload::new(true), LARGEST_RUN, |messages| {
            have_sources = messages.map(|message| !message.control.as_bytes().is_empty()).collect();
            Ok(have_sources.len())
        });
        assert_eq!((sent.unwrap().datagrams, have_sources), (2, vec![false, true]));
        assert!(!queue.forget_source());
    }

    #[test]
    fn datagrams_pushed_together_go_to_one_peer() {
        let mut queue = SendQueue::with_room(0).unwrap();
        for port in [1, 2] {
            let payloads = [SendSlice::new(b"first"), SendSlice::new(b"next")];
            queue.push_all(payloads.into_iter(), Some(&peer(port)), None).unwrap();
        }
        let (left, _) = send_all(&mut queue, &Offload::new(true), all);
        assert_eq!(left, [(Some(1), Some(5), 9), (Some(2), Some(5), 9)]);
    }

    #[test]
    fn equal_sizes_to_one_peer_are_one_run_and_the_last_may_be_shorter() {
        let (long, short) = ([0; 100], [0; 60]);
        let mut queue = queue(&[
            (&long, 1),
            (&long, 1),
            (&short, 1), // ends the run
            (&short, 1),
            (&long, 1), // longer: a run of its own
            (&long, 2), // another peer
            (&[], 2),   // an empty datagram is part of no run
            (&[], 2),
        ]);
        let (left, failures) = send_all(&mut queue, &Offload::new(true), all);
        let expected = [
            (Some(1), Some(100), 260),
            (Some(1), None, 60),
            (Some(1), None, 100),
            (Some(2), None, 100),
            (Some(2), None, 0),
            (Some(2), None, 0),
        ];
        assert_eq!(left, expected);
        assert!(failures.is_empty());
    }

    #[test]
    fn runs_keep_the_kernels_limits() {
        let small = [0; 10];
        let mut queue1 = queue(&[(&small[..], 1); 130]);
        let (left, _) = send_all(&mut queue1, &Offload::new(true), all);
        assert_eq!(left.iter().map(|seen| seen.2).collect::<Vec<_>>(), [640, 640, 20]);
        let large = vec![0; 30_000];
        let mut queue2 = queue(&[(&large[..], 1); 3]);
        let (left, _) = send_all(&mut queue2, &Offload::new(true), all);
        assert_eq!(left.iter().map(|seen| seen.2).collect::<Vec<_>>(), [60_000, 30_000]);
    }

    #[test]
    fn a_call_takes_a_bounded_number_of_messages() {
        let ports: Vec<_> = (1..=150).map(|port| (&b"x"[..], port)).collect();
        let mut calls = Vec::new();
        let (left, _) = send_all(&mut queue(&ports), &Offload::new(true), |messages| {
            calls.push(messages.len());
            Ok(messages.len())
        });
        assert_eq!(calls, [64, 64, 22]);
        assert!(left.iter().map(|seen| seen.0).eq((1..=150).map(Some)));
    }

    #[test]
    fn a_partial_send_goes_on_where_it_stopped() {
        let mut payloads = vec![(&b"aa"[..], 1); 3];
        payloads.extend([(&b"b"[..], 2), (&b"c"[..], 3)]);
        let mut queue = queue(&payloads);
        let (left, _) = send_all(&mut queue, &Offload::new(true), |_| Ok(1));
        let expected = [(Some(1), Some(2), 6), (Some(2), None, 1), (Some(3), None, 1)];
        assert_eq!(left, expected);
    }

    #[test]
    fn a_refused_run_leaves_datagram_by_datagram_and_offload_is_given_up() {
        let offload = Offload::new(true);
        let mut payloads = vec![(&b"xxxx"[..], 1); 3];
        payloads.extend([(&b"yyyy"[..], 2); 2]);
        let mut queue = queue(&payloads);
        let refuse = |messages: &[Seen]| match messages[0].1 {
            Some(_) => Err(errno(libc::EIO)),
            // The kernel stops before the next run that it will refuse.
            None => Ok(messages.iter().take_while(|seen| seen.1.is_none()).count()),
        };
        let (left, failures) = send_all(&mut queue, &offload, refuse);
        assert!(failures.is_empty());
        assert_eq!(left, [[(Some(1), None, 4); 3].as_slice(), &[(Some(2), None, 4); 2]].concat());
        assert_eq!(offload.known(), Some(0));
    }

    #[test]
    fn a_size_beyond_the_mtu_leaves_shorter_runs_their_offload() {
        let offload = Offload::new(true);
        let long = vec![0; 2000];
        let mut payloads = vec![(&long[..], 1); 2];
        payloads.extend([(&long[..1000], 1); 3]); // the first of them ends the refused run
        let mtu = |messages: &[Seen]| match messages[0].1 {
            Some(segment) if segment > 1472 => Err(errno(libc::EINVAL)),
            _ => Ok(1),
        };
        let (left, failures) = send_all(&mut queue(&payloads), &offload, mtu);
        assert!(failures.is_empty());
        let expected = [
            (Some(1), None, 2000),
            (Some(1), None, 2000),
            (Some(1), None, 1000),
            (Some(1), Some(1000), 2000),
        ];
        assert_eq!(left, expected);
        assert_eq!(offload.known(), Some(1999));
    }

    #[test]
    fn an_error_of_the_datagrams_own_does_not_cost_the_offload() {
        let offload = Offload::new(true);
        let mut queue = queue(&[(b"xx", 1), (b"xx", 1), (b"ok", 2)]);
        let unreachable = |messages: &[Seen]| match messages[0].0 {
            Some(1) => Err(errno(libc::EINVAL)), // as for the port 0, run or no run
            _ => Ok(1),
        };
        let (left, failures) = send_all(&mut queue, &offload, unreachable);
        assert_eq!(left, [(Some(2), None, 2)]);
        let failures: Vec<_> =
            failures.iter().map(|failure| (failure.index, failure.error.raw_os_error())).collect();
        assert_eq!(failures, [(0, Some(libc::EINVAL)), (1, Some(libc::EINVAL))]);
        assert_eq!(offload.known(), None);
    }

    #[test]
    fn without_offload_everything_leaves_alone() {
        let (left, _) = send_all(&mut queue(&[(&b"x"[..], 1); 3]), &Offload::new(false), all);
        assert_eq!(left, [(Some(1), None, 1); 3]);
    }

    #[test]
    fn what_lies_in_a_row_is_one_piece_of_memory() {
        let memory = [7; 40];
        let mut queue = SendQueue::default();
        for chunk in memory.chunks(10) {
            queue.push(SendSlice::new(chunk), None, None).unwrap();
        }
        let pieces = queue.send_with(&Offload::new(true), LARGEST_RUN, |messages| {
            let message = messages.next().unwrap();
            assert_eq!(seen(&message), (None, Some(10), 40));
            Ok(message.memory.len())
        });
        assert_eq!(pieces.unwrap().datagrams, 4); // one piece, one message
        assert!(queue.is_empty());
    }

    #[test]
    fn a_source_goes_with_every_message_and_ends_a_run() {
        let source = |last| Source { address: [127, 0, 0, last].into(), interface: 0 };
        let mut queue = SendQueue::default();
        for last in [1, 1, 2] {
            queue.push(SendSlice::new(b"x"), Some(&peer(9)), Some(source(last))).unwrap();
        }
        let mut sources = Vec::new();
        let sent = queue.send_with(&Offload::new(true), LARGEST_RUN, |messages| {
            sources.extend(messages.map(|message| {
                let control = crate::net::cmsg::decode(message.control.as_bytes())
                    .find(|control| control.level == libc::IPPROTO_IP)
                    .unwrap();
                control.data[7]
            }));
            Ok(sources.len())
        });
        assert_eq!(sent.unwrap(), Sent { datagrams: 3, bytes: 3 });
        assert_eq!(sources, [1, 2]);
    }
}
