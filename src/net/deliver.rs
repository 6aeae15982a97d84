//! Delivering received datagrams to the user's code.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::recv_ring::Filled;
use super::socket::RecvCursor;

/// The maximum number of messages of one receive.
const MESSAGES: u64 = 64;
/// A drain checks the time after this many datagrams, and more often at its beginning.
const CHECK: usize = 16;
/// If a datagram takes at least this long, the time is checked after each one.
const SLOW: Duration = Duration::from_micros(10);

/// Whether a drain continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// There may be more to deliver.
    Continue,
    /// The sink takes no further datagrams for now. The rest is still in the cursor.
    Stop,
}

/// The user's code that datagrams are delivered to.
pub trait Sink {
    /// An error that ends the drain.
    type Error;

    /// Whether the sink accepts datagrams now. Checked before each call.
    fn is_open(&mut self) -> bool {
        true
    }

    /// Calls the user's code with the cursor's datagram, or with all datagrams as one batch, and
    /// returns how many it has taken off the cursor. Datagrams that remain after an error were not
    /// delivered.
    fn take(&mut self, cursor: &mut RecvCursor<'_>) -> Result<usize, Self::Error>;

    /// Called now and then, with the number of datagrams that the drain has delivered.
    fn check_time(&mut self, delivered: usize, now: Instant) -> Result<Flow, Self::Error>;
}

/// Delivers the datagrams of a cursor until it is empty, the sink stops or a call fails.
///
/// Datagrams that are not delivered stay in the cursor, which gives them back to the socket's
/// backlog.
#[inline]
pub fn deliver<S: Sink>(
    cursor: &mut RecvCursor<'_>,
    sink: &mut S,
    pace: &mut Pace<'_>,
) -> Result<Flow, S::Error> {
    pace.before = pace.delivered;
    let cost = pace.costs.datagram.load(Ordering::Relaxed);
    let is_slow = cost == 0 || u128::from(cost) >= SLOW.as_nanos();
    while !cursor.is_empty() {
        if !sink.is_open() {
            return Ok(Flow::Stop);
        }
        let taken = sink.take(cursor)?;
        pace.delivered += taken;
        if (is_slow || taken != 1 || is_due(pace.delivered))
            && sink.check_time(pace.delivered, Instant::now())? == Flow::Stop
        {
            return Ok(Flow::Stop);
        }
    }
    Ok(if sink.is_open() { Flow::Continue } else { Flow::Stop })
}

/// Whether to check the time: often at first, because a slow sink must not delay others for many
/// datagrams.
#[inline]
fn is_due(delivered: usize) -> bool {
    delivered.is_multiple_of(CHECK) || delivered < CHECK && delivered.is_power_of_two()
}

/// How long deliveries to one sink have taken lately, in nanoseconds; 0 until it is known.
#[derive(Default)]
pub struct Costs {
    /// Receiving and delivering one of the kernel's messages.
    pub(super) message: AtomicU64,
    /// Delivering one datagram.
    datagram: AtomicU64,
}

/// How fast one drain delivers.
pub struct Pace<'a> {
    pub(super) costs: &'a Costs,
    /// The number of datagrams that the drain has delivered.
    pub(super) delivered: usize,
    /// The value of `delivered` when the last call of [`deliver`] began.
    before: usize,
}

impl<'a> Pace<'a> {
    /// Begins a drain.
    pub fn new(costs: &'a Costs) -> Self {
        Self { costs, delivered: 0, before: 0 }
    }

    /// The number of datagrams that the drain has delivered.
    pub fn delivered(&self) -> usize {
        self.delivered
    }

    /// The number of messages that can probably be delivered in some time. The very first message
    /// shows how long they take.
    pub fn messages_in(&self, time: Duration) -> usize {
        match self.costs.message.load(Ordering::Relaxed) {
            0 => 1,
            cost => (time.as_nanos() as u64 / cost).min(MESSAGES) as usize,
        }
    }

    /// Updates the estimates after a call of [`deliver`] for the result of one receive.
    pub fn note(&self, filled: &Filled, receiving: Duration, delivering: Duration) {
        // The sink may have stopped early: estimate the cost of all datagrams.
        let each = delivering / (self.delivered - self.before).max(1) as u32;
        let message = (receiving + each * filled.datagrams as u32) / filled.messages.max(1) as u32;
        // The latest cost counts half: a sink that becomes slow must not block others for long.
        for (known, latest) in [(&self.costs.message, message), (&self.costs.datagram, each)] {
            let latest = (latest.as_nanos() as u64).max(1);
            known.store(known.load(Ordering::Relaxed).midpoint(latest).max(1), Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::net::socket::testing::holding;
    use crate::net::{Datagrams, Socket};

    /// Records its calls, and responds as configured.
    struct Recorder {
        calls: Vec<Vec<u8>>,
        checks: Vec<usize>,
        batch_len: usize,
        closes_after: Option<usize>,
        stops_at: Option<usize>,
        fails_at: &'static [u8],
    }

    impl Recorder {
        fn new() -> Self {
            let (calls, checks, fails_at) = (Vec::new(), Vec::new(), &b"-"[..]);
            Self { calls, checks, batch_len: 1, closes_after: None, stops_at: None, fails_at }
        }
    }

    impl Sink for Recorder {
        type Error = &'static str;

        fn is_open(&mut self) -> bool {
            self.closes_after.is_none_or(|calls| self.calls.len() < calls)
        }

        fn take(&mut self, cursor: &mut RecvCursor<'_>) -> Result<usize, Self::Error> {
            let (mut batch, mut taken) = (Vec::new(), 0);
            while let Some(datagram) = cursor.current()
                && taken < self.batch_len
            {
                batch.extend(datagram.payload);
                cursor.advance();
                taken += 1;
            }
            let result = if batch == self.fails_at { Err("failed") } else { Ok(taken) };
            self.calls.push(batch);
            result
        }

        fn check_time(&mut self, delivered: usize, _: Instant) -> Result<Flow, Self::Error> {
            self.checks.push(delivered);
            Ok(if self.stops_at == Some(delivered) { Flow::Stop } else { Flow::Continue })
        }
    }

    /// Delivers what one receive brings to a sink for which a datagram has cost some nanoseconds.
    fn deliver_to(sink: &mut Recorder, socket: &Socket, cost: u64) -> Result<Flow, &'static str> {
        let mut cursor = RecvCursor::of_thread(socket).unwrap();
        socket.with(|fd| cursor.receive_messages(fd, 64, libc::MSG_DONTWAIT)).unwrap();
        let costs = Costs { message: AtomicU64::new(cost), datagram: AtomicU64::new(cost) };
        deliver(&mut cursor, sink, &mut Pace::new(&costs))
    }

    #[test]
    fn a_sink_that_closes_or_has_no_time_leaves_the_rest_in_the_backlog() {
        for is_closing in [true, false] {
            let socket = holding(&[b"1", b"2", b"3"]);
            let mut sink = Recorder::new();
            *(if is_closing { &mut sink.closes_after } else { &mut sink.stops_at }) = Some(1);
            assert_eq!(deliver_to(&mut sink, &socket, 100), Ok(Flow::Stop));
            assert_eq!((sink.calls.len(), socket.backlog_len()), (1, 2));
            sink = Recorder { calls: sink.calls, ..Recorder::new() };
            for _ in 0..2 {
                assert_eq!(deliver_to(&mut sink, &socket, 100), Ok(Flow::Continue));
            }
            assert_eq!((sink.calls.concat(), socket.backlog_len()), (b"123".to_vec(), 0));
        }
    }

    #[test]
    fn a_sink_that_closes_at_the_last_datagram_gets_no_further_receive() {
        let mut sink = Recorder { closes_after: Some(2), ..Recorder::new() };
        assert_eq!(deliver_to(&mut sink, &holding(&[b"1", b"2"]), 100), Ok(Flow::Stop));
    }

    #[test]
    fn an_error_leaves_the_rest_in_the_backlog() {
        let socket = holding(&[b"1", b"2", b"3"]);
        let mut sink = Recorder { fails_at: b"1", ..Recorder::new() };
        assert_eq!(deliver_to(&mut sink, &socket, 100), Err("failed"));
        assert_eq!((sink.calls.len(), socket.backlog_len()), (1, 2));
    }

    #[test]
    fn the_time_is_checked_often_at_first_and_after_each_datagram_of_a_slow_sink() {
        let payloads = [&b"x"[..]; 50];
        for (cost, is_each) in [(100, false), (10_000, true), (0, true)] {
            let mut sink = Recorder::new();
            deliver_to(&mut sink, &holding(&payloads), cost).unwrap();
            let expected = if is_each { (1..=50).collect() } else { vec![1, 2, 4, 8, 16, 32, 48] };
            assert_eq!(sink.checks, expected);
        }
    }

    #[test]
    fn the_time_is_checked_after_each_batch() {
        let mut sink = Recorder { batch_len: 3, ..Recorder::new() };
        deliver_to(&mut sink, &holding(&[&b"x"[..]; 9]), 100).unwrap();
        assert_eq!(sink.checks, [3, 6, 9]);
    }

    #[test]
    fn the_cost_of_the_last_receive_counts_half() {
        let costs = Costs::default();
        let mut pace = Pace::new(&costs);
        let time = Duration::from_millis(1);
        assert_eq!(pace.messages_in(time), 1);
        let filled = Filled { messages: 2, datagrams: 8, ..Filled::default() };
        // Half of the datagrams took 400 µs, so all would have taken 800 µs.
        pace.delivered = 4;
        pace.note(&filled, Duration::from_micros(200), Duration::from_micros(400));
        assert_eq!(pace.messages_in(time), 4);
        (pace.before, pace.delivered) = (4, 12);
        pace.note(&filled, Duration::ZERO, Duration::ZERO);
        assert_eq!(pace.messages_in(time), 8);
        assert_eq!(pace.messages_in(Duration::from_secs(1)), MESSAGES as usize);
        assert_eq!(pace.messages_in(Duration::ZERO), 0);
    }
}
