//! Draws what happens to a datagram.

use std::time::Duration;

use super::counts::DropReason;
use super::draws::Draws;
use super::impairments::{Impairments, Loss};
use super::verdict::Verdict;

/// The fate of a datagram. Depends on the seed, the impairments, and the datagram's position
/// in its flow, and on nothing else.
#[derive(Clone, Debug)]
pub(super) struct Fate {
    pub(super) drop: Option<DropReason>,
    /// The copies that arrive in addition.
    pub(super) duplicates: u32,
    /// The bit to flip.
    pub(super) corrupted: Option<usize>,
    /// The length to cut it to.
    pub(super) truncated: Option<usize>,
    pub(super) is_reordered: bool,
    delay: Duration,
    jitter: Duration,
    draws: Draws,
}

/// The state of the fates of one flow.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FlowFates {
    /// The number of datagrams so far.
    pub(super) index: u64,
    is_in_burst: bool,
}

impl FlowFates {
    /// Decides about the flow's next datagram, which has `len` bytes. Each impairment has its own
    /// numbers, so that changing one leaves the decisions of the others as they are.
    pub(super) fn next(
        &mut self,
        seed: u64,
        flow: u32,
        impairments: &Impairments,
        verdict: Option<&Verdict>,
        len: usize,
    ) -> Fate {
        let mut draws = Draws::new(seed, flow, self.index);
        self.index += 1;
        let is_lost = self.is_lost(impairments.loss, &mut draws);
        let duplicate = draws.chance(impairments.duplicate);
        let is_reordered = draws.chance(impairments.reorder);
        let corrupt = draws.chance(impairments.corrupt);
        let bit = (len > 0).then(|| draws.below(len as u64 * 8) as usize);
        let truncate = draws.chance(impairments.truncate);
        let kept = (len > 0).then(|| draws.below(len as u64) as usize);
        let mut fate = Fate {
            drop: is_lost.then_some(DropReason::Lost),
            duplicates: duplicate.into(),
            corrupted: bit.filter(|_| corrupt),
            truncated: kept.filter(|_| truncate),
            is_reordered,
            delay: impairments.delay,
            jitter: impairments.jitter,
            draws,
        };
        if let Some(verdict) = verdict {
            fate.drop = verdict.drop;
            fate.duplicates = verdict.duplicates;
            fate.corrupted = bit.filter(|_| verdict.corrupt);
            fate.truncated = verdict.truncate.filter(|&kept| kept < len);
            fate.is_reordered = verdict.reorder;
            if let Some(delay) = verdict.delay {
                (fate.delay, fate.jitter) = (delay, Duration::ZERO);
            }
        }
        fate
    }

    fn is_lost(&mut self, loss: Loss, draws: &mut Draws) -> bool {
        let (change, lost) = (draws.unit(), draws.unit());
        match loss {
            Loss::Independent(share) => lost < share,
            Loss::Bursts { p, r, bad, good } => {
                self.is_in_burst = if self.is_in_burst { change >= r } else { change < p };
                lost < if self.is_in_burst { bad } else { good }
            }
        }
    }
}

impl Fate {
    /// Draws the delay of the next copy, in nanoseconds.
    pub(super) fn delay(&mut self) -> u64 {
        let (delay, jitter) = (self.delay.as_secs_f64(), self.jitter.as_secs_f64());
        let drawn = delay + jitter * (2.0 * self.draws.unit() - 1.0);
        // Without jitter, exactly the delay. A number that is too large becomes the largest.
        if self.jitter.is_zero() { nanoseconds(self.delay) } else { (drawn.max(0.0) * 1e9) as u64 }
    }

    /// Makes the payload what it arrives as.
    pub(super) fn alter(&self, payload: &mut Vec<u8>) {
        if let Some(bit) = self.corrupted {
            payload[bit / 8] ^= 1 << (bit % 8);
        }
        if let Some(len) = self.truncated {
            payload.truncate(len);
        }
    }
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fates(impairments: &Impairments, count: usize) -> Vec<Fate> {
        let mut flow = FlowFates::default();
        (0..count).map(|_| flow.next(5, 0, impairments, None, 100)).collect()
    }

    fn share(impairments: &Impairments, of: impl Fn(&mut Fate) -> bool) -> f64 {
        let mut fates = fates(impairments, 100_000);
        fates.iter_mut().map(|fate| f64::from(u8::from(of(fate)))).sum::<f64>() / 1e5
    }

    /// Whether a share of 100,000 draws is within 4 standard deviations.
    fn fits(found: f64, expected: f64) -> bool {
        (found - expected).abs() <= 4.0 * (expected * (1.0 - expected) / 1e5).sqrt()
    }

    #[test]
    fn shares_are_the_requested_ones() {
        let impairments = Impairments {
            loss: Loss::Independent(0.05),
            duplicate: 0.02,
            reorder: 0.01,
            corrupt: 0.003,
            truncate: 0.5,
            delay: Duration::from_millis(40),
            jitter: Duration::from_millis(10),
            ..Impairments::default()
        };
        assert!(fits(share(&impairments, |fate| fate.drop.is_some()), 0.05));
        assert!(fits(share(&impairments, |fate| fate.duplicates == 1), 0.02));
        assert!(fits(share(&impairments, |fate| fate.is_reordered), 0.01));
        assert!(fits(share(&impairments, |fate| fate.corrupted.is_some()), 0.003));
        assert!(fits(share(&impairments, |fate| fate.truncated.is_some()), 0.5));
        assert!(fits(share(&impairments, |fate| fate.delay() < 35_000_000), 0.25));
        let outside =
            share(&impairments, |fate| !(30_000_000..=50_000_000).contains(&fate.delay()));
        assert!(outside == 0.0, "{outside}");
        let both = share(&impairments, |fate| fate.drop.is_some() && fate.truncated.is_some());
        assert!(fits(both, 0.025));
    }

    #[test]
    fn bursts_have_the_requested_length_and_share() {
        // p / (p + r) are lost, in bursts of 1 / r datagrams.
        let loss = Loss::Bursts { p: 0.02, r: 0.25, bad: 1.0, good: 0.0 };
        let fates = fates(&Impairments { loss, ..Impairments::default() }, 200_000);
        let lost: Vec<_> = fates.iter().map(|fate| fate.drop.is_some()).collect();
        let count = lost.iter().filter(|&&lost| lost).count();
        let bursts = lost.windows(2).filter(|pair| !pair[0] && pair[1]).count();
        // Of 200,000 datagrams 14,815 on average, in 3,704 bursts.
        assert!(count.abs_diff(14_815) < 1000, "{count}");
        assert!((count * 10).abs_diff(bursts * 40) < 2 * bursts, "{count} in {bursts}");
    }

    #[test]
    fn changing_one_impairment_leaves_the_others() {
        let one = Impairments { reorder: 0.3, truncate: 0.2, ..Impairments::default() };
        let two = Impairments { loss: Loss::Independent(0.5), duplicate: 0.1, ..one.clone() };
        let of = |fate: &Fate| (fate.is_reordered, fate.truncated);
        assert!(fates(&one, 500).iter().map(of).eq(fates(&two, 500).iter().map(of)));
    }

    #[test]
    fn an_empty_datagram_cannot_be_altered() {
        let all = Impairments { corrupt: 1.0, truncate: 1.0, ..Impairments::default() };
        let fate = FlowFates::default().next(1, 1, &all, None, 0);
        assert_eq!((fate.corrupted, fate.truncated), (None, None));
    }
}
