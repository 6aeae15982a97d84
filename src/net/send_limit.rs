//! Limits a send backlog that strangers fill, so that none of them blocks the others.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use super::send_backlog::{Flushed, Outlet, Payload, Queued, Refused, SendBacklog};

/// The datagrams that were dropped to keep a backlog within its limits.
#[derive(Debug, Default)]
pub struct Shed {
    /// How many datagrams.
    pub count: usize,
    /// The last of them.
    pub refused: Vec<Refused>,
}

/// At most this many bytes wait for room, each datagram with its overhead.
const MOST_BYTES: usize = 1 << 20;
/// The bytes that a datagram counts on top of its payload.
const OVERHEAD: usize = 256;
/// No datagram waits longer for room.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// If this many peers have full queues, datagrams for other full peers are dropped at once.
const FULL_PEERS: usize = 64;
/// At most this many of the datagrams that are dropped together are described.
const DESCRIBED: usize = 16;

impl<P: Payload> SendBacklog<P> {
    /// Whether datagrams have found no room.
    fn is_waiting(&self) -> bool {
        self.datagrams.front().is_some_and(|queued| queued.since.is_some())
    }

    /// Drops the oldest datagrams of a backlog that waits for room: those that have waited for too
    /// long, and those that exceed the limit in bytes, or `most` datagrams.
    ///
    /// The oldest, because the peers of the latest ones still wait for them.
    pub fn shed(&mut self, now: Instant, most: usize) -> Shed {
        // Datagrams without a time were queued last.
        for queued in self.datagrams.iter_mut().rev() {
            if queued.since.is_some() {
                break;
            }
            queued.since = Some(now);
        }
        let is_old = |queued: &Queued<P>| {
            queued.since.is_some_and(|since| now.saturating_duration_since(since) >= LONGEST_WAIT)
        };
        let mut size = self.bytes() + self.len() * OVERHEAD;
        let (mut count, mut shed) = (0_usize, 0);
        for queued in &self.datagrams {
            if size <= MOST_BYTES && self.len() - count <= most && !is_old(queued) {
                break;
            }
            let len = queued.data.as_ref().len();
            size -= len + OVERHEAD;
            shed += len;
            count += 1;
        }
        let described = count.saturating_sub(DESCRIBED)..count;
        let refused = described.filter_map(|index| self.refused(index, full(), true)).collect();
        self.datagrams.drain(..count);
        self.bytes -= shed;
        Shed { count, refused }
    }

    /// As [`SendBacklog::flush`], for a backlog that is limited: drops the datagrams that
    /// [`SendBacklog::shed`] does, before and after. Only the latest `most` of those that find no
    /// room are left.
    pub fn flush_limited(&mut self, outlet: &mut impl Outlet, most: usize) -> Flushed {
        let mut shed =
            if self.is_waiting() { self.shed(Instant::now(), usize::MAX) } else { Shed::default() };
        let mut flushed =
            if outlet.has_one_queue() { self.flush(outlet) } else { self.flush_around(outlet) };
        if flushed.is_full {
            let more = self.shed(Instant::now(), most);
            shed.count += more.count;
            shed.refused.extend(more.refused);
            flushed.is_full = !self.is_empty();
        }
        flushed.lost += shed.count;
        flushed.errors.extend(shed.refused);
        flushed
    }

    /// As [`SendBacklog::flush`], for a socket whose peers have queues of their own, such as one of
    /// `AF_UNIX`: datagrams for a peer whose queue is full wait, and those for others leave.
    fn flush_around(&mut self, outlet: &mut impl Outlet) -> Flushed {
        let mut flushed = self.flush(outlet);
        let mut waiting = VecDeque::new();
        let mut full_peers = HashSet::new();
        let has_memory = waiting.try_reserve_exact(self.len()).is_ok()
            && full_peers.try_reserve(FULL_PEERS).is_ok();
        if !flushed.is_full || !has_memory {
            return flushed;
        }
        let mut alone = Self::default();
        let mut bytes = 0;
        for queued in std::mem::take(&mut self.datagrams) {
            let to = queued.to;
            let mut queued = Some(queued);
            if !to.is_some_and(|to| full_peers.contains(&to)) {
                alone.bytes = queued.as_ref().map_or(0, |queued| queued.data.as_ref().len());
                alone.datagrams.extend(queued.take());
                let mut of_one = alone.flush(outlet);
                flushed.lost += of_one.lost;
                flushed.errors.append(&mut of_one.errors);
                let is_known = full_peers.len() < FULL_PEERS;
                if !alone.is_empty() && !is_known {
                    flushed.lost += 1;
                    flushed.errors.extend(alone.refused(0, full(), true));
                }
                let left = alone.datagrams.pop_front();
                if is_known && left.is_some() {
                    full_peers.extend(to);
                    queued = left;
                }
            }
            bytes += queued.as_ref().map_or(0, |queued| queued.data.as_ref().len());
            waiting.extend(queued);
        }
        (self.datagrams, self.bytes) = (waiting, bytes);
        flushed.is_full = !self.is_empty();
        flushed
    }
}

/// There was no room.
fn full() -> io::Error {
    io::Error::from_raw_os_error(libc::EAGAIN)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::num::NonZero;

    use super::super::address::Address;
    use super::super::send_queue::{SendQueue, Sent};
    use super::*;

    fn peer(port: usize) -> Address {
        SocketAddr::from(([127, 0, 0, 1], port as u16)).into()
    }

    fn backlog(datagrams: &[(usize, usize)]) -> SendBacklog<Vec<u8>> {
        let mut backlog = SendBacklog::default();
        for &(port, len) in datagrams {
            backlog.push(vec![7; len], Some(peer(port)), None).unwrap();
        }
        backlog
    }

    fn ports(backlog: &SendBacklog<Vec<u8>>) -> Vec<u16> {
        let port = |queued: &Queued<Vec<u8>>| queued.to.unwrap().ip().unwrap().port();
        backlog.datagrams.iter().map(port).collect()
    }

    /// A kernel in which some peers have no room.
    #[derive(Default)]
    struct Peers {
        full: Vec<Address>,
        has_one_queue: bool,
        sent: usize,
        calls: usize,
    }

    impl Outlet for Peers {
        fn send(&mut self, queue: &mut SendQueue<'_>) -> io::Result<Sent> {
            self.calls += 1;
            if queue.next_address().is_some_and(|to| self.full.contains(to)) {
                return Err(full());
            }
            queue.skip();
            self.sent += 1;
            Ok(Sent { datagrams: NonZero::<usize>::MIN, bytes: 1 })
        }

        fn wait(&mut self, _: &mut SendQueue<'_>) -> Option<io::Result<Sent>> {
            None
        }

        fn may_be_of_earlier(&self, _: &io::Error) -> bool {
            false
        }

        fn has_one_queue(&self) -> bool {
            self.has_one_queue
        }

        fn clear_error(&mut self) {}

        fn forget_source(&mut self, _: &Address) {}
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri takes longer than a datagram may wait")]
    fn the_oldest_are_dropped_beyond_the_limit_and_the_last_of_them_are_described() {
        let datagrams: Vec<_> = (1..=5000).map(|port| (port, 0)).collect();
        let mut backlog = backlog(&datagrams);
        let shed = backlog.shed(Instant::now(), usize::MAX);
        assert_eq!((shed.count, shed.refused.len()), (5000 - MOST_BYTES / OVERHEAD, DESCRIBED));
        assert_eq!(shed.refused.last().unwrap().to, Some(peer(shed.count)));
        assert_eq!((backlog.len(), backlog.bytes()), (MOST_BYTES / OVERHEAD, 0));
        assert_eq!(backlog.shed(Instant::now(), usize::MAX).count, 0);
        assert_eq!(
            (backlog.shed(Instant::now(), 7).count, backlog.len()),
            (MOST_BYTES / OVERHEAD - 7, 7)
        );
    }

    #[test]
    fn datagrams_that_have_waited_too_long_are_dropped() {
        let mut backlog = backlog(&[(1, 3)]);
        let start = Instant::now();
        assert_eq!(backlog.shed(start, usize::MAX).count, 0);
        backlog.push(vec![0; 4], Some(peer(2)), None).unwrap();
        assert_eq!(backlog.shed(start + LONGEST_WAIT / 2, usize::MAX).count, 0);
        let shed = backlog.shed(start + LONGEST_WAIT, usize::MAX);
        assert_eq!((shed.count, shed.refused[0].to), (1, Some(peer(1))));
        assert_eq!((ports(&backlog), backlog.bytes()), (vec![2], 4));
        assert_eq!(backlog.shed(start + LONGEST_WAIT * 3 / 2, usize::MAX).count, 1);
        assert_eq!((backlog.len(), backlog.bytes()), (0, 0));
    }

    #[test]
    fn a_full_peer_does_not_block_the_others_and_keeps_its_order() {
        let mut backlog = backlog(&[(1, 1), (2, 2), (1, 3), (3, 4), (1, 5)]);
        let mut peers = Peers { full: vec![peer(1)], ..Peers::default() };
        let flushed = backlog.flush_around(&mut peers);
        assert!(flushed.is_full && flushed.errors.is_empty());
        assert_eq!((peers.sent, ports(&backlog), backlog.bytes()), (2, vec![1, 1, 1], 9));
        let lens = backlog.datagrams.iter().map(|queued| queued.data.len());
        assert_eq!(lens.collect::<Vec<_>>(), [1, 3, 5]);
        peers.full.clear();
        assert!(!backlog.flush_around(&mut peers).is_full);
        assert_eq!((peers.sent, backlog.len(), backlog.bytes()), (5, 0, 0));
    }

    #[test]
    fn with_too_many_full_peers_a_datagram_is_dropped() {
        let datagrams: Vec<_> = (1..=FULL_PEERS + 3).map(|port| (port, 1)).collect();
        let mut backlog = backlog(&datagrams);
        let full = (1..FULL_PEERS + 3).map(peer).collect();
        let mut peers = Peers { full, ..Peers::default() };
        let flushed = backlog.flush_around(&mut peers);
        assert_eq!(
            (flushed.errors.len(), flushed.lost, backlog.len(), backlog.bytes()),
            (2, 2, FULL_PEERS, FULL_PEERS)
        );
        assert!(flushed.is_full && peers.sent == 1);
    }

    #[test]
    fn a_flush_first_drops_datagrams_that_have_waited_too_long() {
        for has_one_queue in [true, false] {
            let mut backlog = backlog(&[(1, 1), (2, 2), (3, 3), (9, 4)]);
            backlog.datagrams[0].since = Instant::now().checked_sub(LONGEST_WAIT);
            backlog.datagrams[1].since = backlog.datagrams[0].since;
            let mut peers = Peers { full: vec![peer(9)], has_one_queue, ..Peers::default() };
            let flushed = backlog.flush_limited(&mut peers, usize::MAX);
            assert!(flushed.is_full);
            assert_eq!((peers.sent, flushed.lost, ports(&backlog)), (1, 2, vec![9]));
            let lost = flushed.errors.iter().map(|refused| refused.to);
            assert_eq!(lost.collect::<Vec<_>>(), [Some(peer(1)), Some(peer(2))]);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri takes longer than a datagram may wait")]
    fn a_flush_finally_drops_datagrams_beyond_the_limit() {
        for has_one_queue in [true, false] {
            let mut datagrams = vec![(9, 0); 5001];
            datagrams[0].0 = 1;
            let mut backlog = backlog(&datagrams);
            let mut peers = Peers { full: vec![peer(9)], has_one_queue, ..Peers::default() };
            let (flushed, kept) =
                (backlog.flush_limited(&mut peers, usize::MAX), MOST_BYTES / OVERHEAD);
            assert!(flushed.is_full && flushed.errors.len() == DESCRIBED);
            assert_eq!((peers.sent, backlog.len(), flushed.lost), (1, kept, 5000 - kept));
            peers.full.clear();
            let flushed = backlog.flush_limited(&mut peers, usize::MAX);
            assert_eq!((flushed.lost, flushed.errors.len(), backlog.len()), (0, 0, 0));
        }
    }

    #[test]
    fn a_flush_keeps_only_the_latest_of_those_without_room() {
        for has_one_queue in [true, false] {
            let mut backlog = backlog(&[(1, 1), (9, 2), (9, 3), (9, 4)]);
            let mut peers = Peers { full: vec![peer(9)], has_one_queue, ..Peers::default() };
            let flushed = backlog.flush_limited(&mut peers, 2);
            assert!(flushed.is_full);
            let described = flushed.errors.iter().map(|refused| refused.len).collect::<Vec<_>>();
            assert_eq!((peers.sent, flushed.lost, described), (1, 1, vec![2]));
            assert_eq!((backlog.len(), backlog.bytes()), (2, 7));
        }
    }

    #[test]
    fn a_full_queue_whose_datagrams_are_all_dropped_is_not_full() {
        let mut backlog = backlog(&[(9, 2 * MOST_BYTES)]);
        let mut peers = Peers { full: vec![peer(9)], has_one_queue: true, ..Peers::default() };
        let flushed = backlog.flush_limited(&mut peers, usize::MAX);
        assert!(!flushed.is_full && backlog.is_empty());
        assert_eq!((flushed.lost, flushed.errors.len()), (1, 1));
    }
}
