//! How drains share the time of an event loop with each other and with other callbacks.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::deliver::Pace;

/// The minimum time of a drain, even while other callbacks wait.
const BESIDE_OTHERS: Duration = Duration::from_micros(20);
/// The standard loop delivers one datagram in each turn. A transport that delivers at least this many
/// and then skips a turn is never slower.
const AT_LEAST: usize = 2;
/// A protocol that takes longer than this for one datagram gets no second one in the same turn, and no
/// turn is skipped.
const BRIEF: Duration = Duration::from_micros(200);

/// Counts the turns of an event loop, and divides the time of each among its transports.
#[derive(Default)]
pub struct Turns {
    count: AtomicU64,
    /// How many transports ran out of time in this turn, and in the last one.
    cut_short: AtomicU32,
    cut_short_before: AtomicU32,
    /// The time of each of several transports in this turn, in nanoseconds; 0 until one requests it.
    share: AtomicU64,
}

impl Turns {
    /// Begins the next turn.
    pub fn advance(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let cut_short = self.cut_short.load(Ordering::Relaxed);
        let before = self.cut_short_before.load(Ordering::Relaxed);
        if cut_short | before != 0 {
            self.cut_short_before.store(cut_short, Ordering::Relaxed);
            self.cut_short.store(0, Ordering::Relaxed);
            self.share.store(0, Ordering::Relaxed);
        }
    }

    /// The number of this turn, at least 1.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed) + 1
    }

    /// How long a transport may deliver in this turn. Transports that ran out of time in the last
    /// turn share this one equally, whichever comes first.
    ///
    /// `ask` returns how long the loop has nothing else to do, if a number of waiting callbacks,
    /// those of the transports themselves, do not count.
    pub fn share<E>(&self, ask: impl FnOnce(u32) -> Result<Duration, E>) -> Result<Duration, E> {
        let sharers = self.cut_short_before.load(Ordering::Relaxed);
        if sharers <= 1 {
            return ask(0);
        }
        let share = self.share.load(Ordering::Relaxed);
        if share != 0 {
            return Ok(Duration::from_nanos(share));
        }
        // Each of the others has up to two callbacks waiting, and this one has another.
        let share = ask(2 * sharers - 1)? / sharers;
        self.share.store((share.as_nanos() as u64).max(1), Ordering::Relaxed);
        Ok(share)
    }
}

/// When a transport skips a turn in favour of other callbacks.
#[derive(Default)]
pub struct TurnSkipping {
    /// The turn in which a drain ran out of time, until another one is skipped for it; or 0.
    cut_short: AtomicU64,
}

impl TurnSkipping {
    /// Whether to skip a turn: other callbacks wait, and the last turn had too little time for all
    /// datagrams. No two turns in a row are skipped, and a datagram that arrives alone is delivered
    /// immediately.
    pub fn skips(&self, turn: u64, time: Duration) -> bool {
        let cut_short = self.cut_short.swap(0, Ordering::Relaxed);
        time.is_zero() && cut_short != 0 && turn.saturating_sub(cut_short) <= 1
    }

    /// Records that a drain ran out of time in a turn, unless it delivered so little that others
    /// get their turn anyway.
    pub fn note_cut_short(&self, turn: u64, turns: Option<&Turns>, delivered: usize) {
        if delivered >= AT_LEAST
            && self.cut_short.swap(turn, Ordering::Relaxed) != turn
            && let Some(turns) = turns
        {
            turns.cut_short.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The time of one drain.
pub struct TurnBudget {
    started: Instant,
    deadline: Instant,
}

impl TurnBudget {
    /// Begins now, for the time that the loop has; a little longer if it has none.
    pub fn new(now: Instant, time: Duration) -> Self {
        Self { started: now, deadline: now + time.max(BESIDE_OTHERS) }
    }

    /// How many messages to receive now; `None` if the time is up.
    pub fn messages(&self, pace: &Pace<'_>, now: Instant) -> Option<usize> {
        let cost = u128::from(pace.costs.message.load(Ordering::Relaxed));
        let least = if (1..BRIEF.as_nanos()).contains(&cost) { AT_LEAST } else { 1 };
        let count = pace.messages_in(self.deadline.saturating_duration_since(now));
        let count = count.max(least.saturating_sub(pace.delivered()));
        (count > 0).then_some(count)
    }

    /// Whether a drain that has delivered some datagrams must end.
    pub fn is_spent(&self, delivered: usize, now: Instant) -> bool {
        if delivered < AT_LEAST {
            now.saturating_duration_since(self.started) >= BRIEF
        } else {
            now >= self.deadline
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::net::deliver::Costs;
    use crate::net::recv_ring::Filled;
    use std::convert::Infallible;

    const MICRO: Duration = Duration::from_micros(1);

    fn share(turns: &Turns, time: Duration) -> (Duration, Option<u32>) {
        let mut asked = None;
        let Ok(share) = turns.share::<Infallible>(|uncounted| {
            asked = Some(uncounted);
            Ok(time)
        });
        (share, asked)
    }

    #[test]
    fn transports_that_were_cut_short_share_the_next_turn() {
        let turns = Turns::default();
        assert_eq!(share(&turns, MICRO), (MICRO, Some(0)));
        for _ in 0..3 {
            TurnSkipping::default().note_cut_short(turns.count(), Some(&turns), 2);
        }
        assert_eq!(share(&turns, MICRO), (MICRO, Some(0)));
        turns.advance();
        assert_eq!(share(&turns, 9 * MICRO), (3 * MICRO, Some(5)));
        assert_eq!(share(&turns, 90 * MICRO), (3 * MICRO, None));
        turns.advance();
        assert_eq!(share(&turns, MICRO), (MICRO, Some(0)));
    }

    #[test]
    fn a_transport_counts_once_in_a_turn() {
        let (turns, skipping) = (Turns::default(), TurnSkipping::default());
        for _ in 0..2 {
            skipping.note_cut_short(turns.count(), Some(&turns), 2);
        }
        turns.advance();
        assert_eq!(share(&turns, MICRO), (MICRO, Some(0)));
    }

    #[test]
    fn a_turn_is_skipped_for_others_but_not_two_in_a_row() {
        let skipping = TurnSkipping::default();
        assert!(!skipping.skips(1, Duration::ZERO));
        skipping.note_cut_short(1, None, 2);
        assert!(skipping.skips(2, Duration::ZERO));
        assert!(!skipping.skips(3, Duration::ZERO));
        skipping.note_cut_short(3, None, 2);
        assert!(!skipping.skips(4, MICRO)); // the loop has time
        skipping.note_cut_short(4, None, 2);
        assert!(!skipping.skips(6, Duration::ZERO)); // others had turn 5
        skipping.note_cut_short(6, None, 1);
        assert!(!skipping.skips(7, Duration::ZERO)); // the protocol is slow
    }

    /// A drain that has delivered some datagrams, at a cost.
    fn pace(costs: &Costs, delivered: usize, cost: Duration) -> Pace<'_> {
        let mut pace = Pace::new(costs);
        pace.delivered = delivered;
        let one = Filled { messages: 1, datagrams: 1, ..Filled::default() };
        pace.note(&one, 2 * cost, Duration::ZERO);
        pace
    }

    #[test]
    fn a_drain_delivers_two_datagrams_whatever_the_time_but_only_one_to_a_slow_protocol() {
        let start = Instant::now();
        let budget = TurnBudget::new(start, Duration::ZERO);
        let messages = |delivered, cost, at| {
            budget.messages(&pace(&Costs::default(), delivered, cost), start + at)
        };
        assert_eq!(messages(0, MICRO, 10 * MICRO), Some(10));
        assert_eq!(messages(0, MICRO, 30 * MICRO), Some(2));
        assert_eq!(messages(1, MICRO, 30 * MICRO), Some(1));
        assert_eq!(messages(2, MICRO, 30 * MICRO), None);
        assert_eq!(messages(0, BRIEF, 30 * MICRO), Some(1));
        assert_eq!(messages(1, BRIEF, 30 * MICRO), None);
        assert_eq!(budget.messages(&Pace::new(&Costs::default()), start), Some(1));
        assert!(!budget.is_spent(1, start + 30 * MICRO));
        assert!(budget.is_spent(1, start + BRIEF));
        assert!(budget.is_spent(2, start + 20 * MICRO));
        assert!(!budget.is_spent(2, start + 19 * MICRO));
    }
}
