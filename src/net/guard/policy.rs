//! The checks that a guard makes.

use super::bucket::Rate;
use super::networks::Networks;

/// The checks that a guard makes. It skips those that are `None`.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The networks that it admits.
    pub networks: Option<Networks>,
    /// Whether the kernel also gets the networks, as a filter.
    pub kernel_filter: bool,
    /// The number of datagrams per second that it admits from one source, and the burst.
    pub rate: Option<(f64, u32)>,
    /// IPv4 addresses that share this many bits are one source.
    pub prefix_v4: u8,
    /// IPv6 addresses that share this many bits are one source.
    pub prefix_v6: u8,
    /// The number of datagrams per second that it admits in total.
    pub ceiling: Option<f64>,
    /// The number of bytes that may be sent to an address for each byte received from it.
    pub amplification: Option<f64>,
    /// The longest payload that it admits.
    pub max_size: Option<usize>,
    /// The number of sources that it remembers.
    pub sources: usize,
}

impl Default for Policy {
    /// No checks.
    fn default() -> Self {
        Self {
            networks: None,
            kernel_filter: true,
            rate: None,
            prefix_v4: 32,
            prefix_v6: 64, // one IPv6 customer has at least a /64
            ceiling: None,
            amplification: None,
            max_size: None,
            sources: 1 << 18,
        }
    }
}

/// Why a guard cannot follow a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyError {
    /// A value is invalid.
    Wrong(&'static str),
    /// Memory allocation failed.
    NoMemory(&'static str),
}

/// The token buckets of a policy, whose values have been checked.
#[derive(Clone, Copy)]
pub(super) struct Rates {
    /// For each source.
    pub(super) source: Option<Rate>,
    /// For all sources together.
    pub(super) ceiling: Option<Rate>,
}

impl Policy {
    /// Checks the values.
    pub(super) fn rates(&self) -> Result<Rates, PolicyError> {
        let limit = |rate: Option<(f64, u32)>, error| {
            rate.map(|(rate, burst)| Rate::new(rate, burst).ok_or(PolicyError::Wrong(error)))
                .transpose()
        };
        let source = limit(
            self.rate,
            "rate must be a positive number of datagrams per second, and burst at least 1",
        )?;
        // The burst is a tenth of a second's worth. Unknown sources leave half of it to known ones.
        let ceiling = self.ceiling.map(|ceiling| (ceiling, ((ceiling / 10.0) as u32).max(64)));
        let ceiling = limit(ceiling, "ceiling must be a positive number of datagrams per second")?;
        if self.amplification.is_some_and(|factor| !(factor > 0.0 && factor.is_finite())) {
            return Err(PolicyError::Wrong("amplification must be a positive number"));
        }
        if self.prefix_v4 > 32 || self.prefix_v6 > 128 {
            return Err(PolicyError::Wrong("prefixes must be at most 32 and 128 bits"));
        }
        if !(8..=1 << 24).contains(&self.sources) {
            return Err(PolicyError::Wrong("sources must be from 8 to 16777216"));
        }
        Ok(Rates { source, ceiling })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_policy_is_refused() {
        let with = |change: fn(&mut Policy)| {
            let mut policy = Policy::default();
            change(&mut policy);
            policy.rates().is_ok()
        };
        assert!(with(|_| {}));
        assert!(!with(|policy| policy.rate = Some((0.0, 1))));
        assert!(!with(|policy| policy.rate = Some((1.0, 0))));
        assert!(!with(|policy| policy.ceiling = Some(-1.0)));
        assert!(!with(|policy| policy.amplification = Some(f64::NAN)));
        assert!(!with(|policy| policy.prefix_v4 = 33));
        assert!(!with(|policy| policy.sources = 7));
    }
}
