//! Guards: limits on a socket's sources, their rates and the bytes sent back to them, checked on
//! arrival before other code sees a datagram.
//!
//! Memory is bounded whatever senders do: see [`table`]. (Crates that limit rates by key keep a map
//! that grows with the number of keys. Here an attacker chooses the keys.)

mod amplification;
mod arrival;
mod bucket;
mod counters;
mod kernel_filter;
mod networks;
mod policy;
mod table;

pub use arrival::Arrival;
pub use counters::GuardCounts;
pub use kernel_filter::{header, kernel_filter, run};
pub use networks::{NetworkError, Networks, parse_network};
pub use policy::{Policy, PolicyError};

use std::io;
use std::net::IpAddr;
use std::time::Instant;

use libc::sock_filter;

use self::counters::GuardCounters;
use self::networks::MAPPED_LEN;
use self::policy::Rates;
use self::table::{Slot, Table};
use super::fork_mutex::{ForkMutex, ForkMutexGuard, Inherit};

/// Checks the datagrams of one or more sockets.
pub struct Guard {
    policy: Policy,
    kernel_filter: Option<Vec<sock_filter>>,
    rates: Rates,
    sources: Option<ForkMutex<Sources>>,
    counters: GuardCounters,
    started: Instant,
}

/// The state that a guard keeps about sources.
struct Sources {
    table: Table,
    /// When the bucket of all sources together is full.
    ceiling_full_at: u64,
}

/// A child inherits its parent's state. It consists of independent numbers, and any value of each
/// is valid: after a fork in the middle of a change, only those of one source are wrong.
impl Inherit for Sources {
    fn inherit(&mut self) {}
}

impl Guard {
    /// Creates a guard that has not seen any datagrams.
    pub fn new(policy: Policy) -> Result<Self, PolicyError> {
        let no_memory = |text| move |_: io::Error| PolicyError::NoMemory(text);
        let rates = policy.rates()?;
        let remembers =
            rates.source.is_some() || rates.ceiling.is_some() || policy.amplification.is_some();
        let table = remembers.then(|| Table::new(policy.sources.next_power_of_two())).transpose();
        let table = table.map_err(no_memory("not enough memory for the guard's sources"))?;
        let sources = table.map(|table| ForkMutex::new(Sources { table, ceiling_full_at: 0 }));
        let networks = policy.networks.as_ref().filter(|_| policy.kernel_filter);
        let kernel_filter = networks.and_then(kernel_filter);
        let counters = GuardCounters::new()
            .map_err(no_memory("not enough memory for the guard's counters"))?;
        Ok(Self { policy, kernel_filter, rates, sources, counters, started: Instant::now() })
    }

    /// The checks that the guard makes.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The networks as a filter for the kernel, if they can be expressed as one.
    pub fn kernel_filter(&self) -> Option<&[sock_filter]> {
        self.kernel_filter.as_deref()
    }

    /// The number of datagrams admitted and refused so far, by the process that created the guard
    /// and all processes forked from it since.
    pub fn counts(&self) -> GuardCounts {
        self.counters.sum()
    }

    /// Decides how many datagrams of each arrival are admitted; returns how many are refused.
    pub fn admit(&self, arrivals: &mut [Arrival]) -> usize {
        self.admit_at(arrivals, self.now())
    }

    /// Whether a datagram would be admitted now. Does not change any state.
    pub fn would_admit(&self, arrival: &Arrival) -> bool {
        let now = self.now();
        let mut arrival = *arrival;
        self.check(&mut arrival, &mut GuardCounts::default());
        if arrival.passing == 0 {
            return false;
        }
        let (Some(address), Some(sources)) = (arrival.source, self.sources()) else { return true };
        let hash = sources.table.hash(self.rate_source(address));
        let slot = sources.table.find(hash);
        let is_known = slot.is_some_and(Slot::is_known);
        let slot = slot.unwrap_or_else(|| sources.table.slot_for(hash, now));
        let full_at = sources.table.full_at(slot);
        self.rates.source.is_none_or(|rate| rate.room(full_at, now) > 0)
            && self.ceiling_room(&sources, is_known, now) > 0
    }

    fn admit_at(&self, arrivals: &mut [Arrival], now: u64) -> usize {
        let mut counts = GuardCounts::default();
        for arrival in &mut *arrivals {
            self.check(arrival, &mut counts);
        }
        if let Some(mut sources) = self.sources() {
            for arrival in &mut *arrivals {
                if let Some(address) = arrival.source {
                    arrival.hash = sources.table.hash(self.rate_source(address));
                }
            }
            let is_shut = self.is_shut(&sources, now);
            for arrival in &*arrivals {
                if !is_shut || sources.table.may_be_known(arrival.hash) {
                    sources.table.prefetch(arrival.hash);
                }
            }
            for arrival in &mut *arrivals {
                if let Some(address) = arrival.source.filter(|_| arrival.passing > 0) {
                    self.charge(&mut sources, arrival, address, now, &mut counts);
                }
            }
        }
        let total: usize = arrivals.iter().map(|arrival| arrival.datagrams).sum();
        let admitted: usize = arrivals.iter().map(|arrival| arrival.passing).sum();
        counts.admitted = admitted as u64;
        self.counters.count(counts);
        total - admitted
    }

    /// Makes the checks that need no state about sources.
    fn check(&self, arrival: &mut Arrival, counts: &mut GuardCounts) {
        if let (Some(networks), Some(address)) = (&self.policy.networks, arrival.source)
            && !networks.allow(address)
        {
            counts.denied += arrival.datagrams as u64;
            arrival.passing = 0;
            return;
        }
        if let Some(max_size) = self.policy.max_size {
            counts.oversized += arrival.refuse_oversized(max_size) as u64;
        }
    }

    /// Takes one token for each datagram, or as many tokens as there are.
    fn charge(
        &self,
        sources: &mut Sources,
        arrival: &mut Arrival,
        address: IpAddr,
        now: u64,
        counts: &mut GuardCounts,
    ) {
        let wanted = arrival.passing as u64;
        if self.is_shut(sources, now) && !sources.table.may_be_known(arrival.hash) {
            counts.over_ceiling += wanted;
            arrival.passing = 0;
            return;
        }
        let slot = sources.table.find(arrival.hash);
        // A refused source changes nothing in the table, and costs only the lookup.
        let is_known = slot.is_some_and(Slot::is_known);
        let in_ceiling = self.ceiling_room(sources, is_known, now).min(wanted);
        counts.over_ceiling += wanted - in_ceiling;
        arrival.passing = 0;
        if in_ceiling == 0 {
            return;
        }
        let slot = slot.unwrap_or_else(|| sources.table.slot_for(arrival.hash, now));
        let full_at = sources.table.full_at(slot);
        let rate = self.rates.source;
        let admitted = rate.map_or(in_ceiling, |rate| rate.room(full_at, now).min(in_ceiling));
        counts.over_rate += in_ceiling - admitted;
        if admitted == 0 {
            return;
        }
        arrival.passing = admitted as usize;
        let slot = sources.table.settle(slot, arrival.hash, now);
        if let Some(rate) = rate {
            sources.table.set_full_at(slot, rate.take(full_at, now, admitted));
        }
        if let Some(ceiling) = self.rates.ceiling {
            sources.ceiling_full_at = ceiling.take(sources.ceiling_full_at, now, admitted);
        }
        self.grant(sources, arrival, slot, address, now);
    }

    /// Whether the ceiling leaves no room for unknown sources.
    fn is_shut(&self, sources: &Sources, now: u64) -> bool {
        self.ceiling_room(sources, false, now) == 0
    }

    fn ceiling_room(&self, sources: &Sources, is_known: bool, now: u64) -> u64 {
        match self.rates.ceiling {
            None => u64::MAX,
            Some(ceiling) if is_known => ceiling.room(sources.ceiling_full_at, now),
            Some(ceiling) => ceiling.half_room(sources.ceiling_full_at, now),
        }
    }

    /// The number that identifies the source of an address.
    fn rate_source(&self, address: IpAddr) -> u128 {
        let address = address.to_canonical();
        let prefix_len = match address {
            IpAddr::V4(_) => MAPPED_LEN + self.policy.prefix_v4,
            IpAddr::V6(_) => self.policy.prefix_v6,
        };
        number(address) & u128::MAX.checked_shl(128 - u32::from(prefix_len)).unwrap_or(0)
    }

    fn count(&self, counts: GuardCounts) {
        self.counters.count(counts);
    }

    fn sources(&self) -> Option<ForkMutexGuard<'_, Sources>> {
        Some(self.sources.as_ref()?.lock())
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }
}

/// Converts an address to a number. IPv4 and IPv6 addresses never share one.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().into(),
        IpAddr::V6(address) => address.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::address::Address;
    use std::net::SocketAddr;

    const SECOND: u64 = 1_000_000_000;

    fn from(address: &str) -> Address {
        address.parse::<SocketAddr>().unwrap().into()
    }

    fn passes(guard: &Guard, source: &str, len: usize, now: u64) -> bool {
        let mut arrivals = [Arrival::one(from(source).as_bytes(), len)];
        guard.admit_at(&mut arrivals, now);
        arrivals[0].passing() == (0..1)
    }

    fn rated(rate: f64, burst: u32) -> Policy {
        Policy { rate: Some((rate, burst)), sources: 1 << 10, ..Policy::default() }
    }

    #[test]
    fn refused_datagrams_are_counted_by_reason() {
        let deny = [parse_network("10.0.0.0/8").unwrap()];
        let guard = Guard::new(Policy {
            networks: Some(Networks::new(None, &deny).unwrap()),
            max_size: Some(100),
            ..rated(1.0, 1)
        })
        .unwrap();
        assert!(!passes(&guard, "10.0.0.1:5", 1, SECOND));
        assert!(!passes(&guard, "[::ffff:10.0.0.1]:5", 1, SECOND));
        assert!(!passes(&guard, "192.0.2.1:5", 101, SECOND));
        assert!(passes(&guard, "192.0.2.1:5", 100, SECOND));
        assert!(!passes(&guard, "192.0.2.1:6", 100, SECOND));
        assert!(!passes(&guard, "[::ffff:192.0.2.1]:6", 100, SECOND));
        assert!(passes(&guard, "192.0.2.2:5", 100, SECOND));
        let expected = GuardCounts {
            admitted: 2,
            refused: 5,
            denied: 2,
            oversized: 1,
            over_rate: 2,
            ..GuardCounts::default()
        };
        assert_eq!(guard.counts(), expected);
    }

    #[test]
    fn a_run_passes_as_far_as_its_tokens_reach() {
        let guard = Guard::new(rated(1.0, 4)).unwrap();
        let source = from("[2001:db8::1]:9");
        let mut arrivals = [Arrival::run(source.as_bytes(), 550, 100, 6)];
        assert_eq!(guard.admit_at(&mut arrivals, SECOND), 2);
        assert_eq!(arrivals[0].passing(), 0..4);
    }

    #[test]
    fn the_last_of_a_run_may_be_short_enough() {
        let guard = Guard::new(Policy { max_size: Some(50), ..rated(1.0, 4) }).unwrap();
        let source = from("192.0.2.1:9");
        let mut arrivals = [
            Arrival::run(source.as_bytes(), 550, 100, 6),
            Arrival::run(source.as_bytes(), 551, 100, 6),
            Arrival::run(source.as_bytes(), 0, 0, 1),
            Arrival::run(source.as_bytes(), 150, 50, 3),
        ];
        assert_eq!(guard.admit_at(&mut arrivals, SECOND), 12);
        assert_eq!(arrivals.map(|arrival| arrival.passing()), [5..6, 6..6, 0..1, 0..2]);
        assert_eq!((guard.counts().oversized, guard.counts().over_rate), (11, 1));
    }

    #[test]
    fn a_source_may_be_a_network() {
        let guard = Guard::new(Policy { prefix_v4: 24, prefix_v6: 64, ..rated(1.0, 1) }).unwrap();
        assert!(passes(&guard, "192.0.2.1:1", 1, SECOND));
        assert!(!passes(&guard, "192.0.2.255:1", 1, SECOND));
        assert!(passes(&guard, "192.0.3.1:1", 1, SECOND));
        assert!(passes(&guard, "[2001:db8::1]:1", 1, SECOND));
        assert!(!passes(&guard, "[2001:db8::ffff:0:0:0]:1", 1, SECOND));
        assert!(passes(&guard, "[2001:db8:0:1::1]:1", 1, SECOND));
        let all = Guard::new(Policy { prefix_v4: 0, prefix_v6: 0, ..rated(1.0, 1) }).unwrap();
        assert!(passes(&all, "192.0.2.1:1", 1, SECOND));
        assert!(!passes(&all, "203.0.113.1:1", 1, SECOND));
    }

    #[test]
    fn strangers_at_the_ceiling_leave_room_for_the_known() {
        let policy = Policy { ceiling: Some(1000.0), sources: 1 << 10, ..Policy::default() };
        let guard = Guard::new(policy).unwrap();
        for tick in 0..20 {
            assert!(passes(&guard, "192.0.2.1:1", 1, SECOND + tick * SECOND / 10));
        }
        let (mut now, mut strangers) = (3 * SECOND, 0);
        for round in 0..100_000_u32 {
            now += 20_000; // 50,000 per second, for two seconds
            let stranger = format!("10.{}.{}.1:1", round >> 8 & 0xff, round & 0xff);
            strangers += u32::from(passes(&guard, &stranger, 1, now));
            if round % 100 == 0 {
                assert!(passes(&guard, "192.0.2.1:1", 1, now), "round {round}");
            }
        }
        // 2000 in two seconds, half a burst, and the thousand that the known peer took.
        assert!((1000..=1100).contains(&strangers), "{strangers}");
    }

    #[test]
    fn an_address_has_a_budget_until_it_is_validated() {
        let policy = Policy { amplification: Some(3.0), sources: 1 << 10, ..Policy::default() };
        let guard = Guard::new(Policy { prefix_v4: 24, ..policy }).unwrap();
        let (peer, neighbour) = (from("192.0.2.1:7"), from("192.0.2.2:7"));
        let other_port = from("192.0.2.1:8");
        assert!(!guard.spend(Some(&peer), 1));
        assert!(passes(&guard, "192.0.2.1:7", 100, SECOND));
        assert!(guard.spend(Some(&peer), 200));
        assert!(!guard.spend(Some(&peer), 101));
        guard.refund(Some(&peer), 50);
        assert!(guard.spend(Some(&other_port), 150));
        assert!(!guard.spend(Some(&neighbour), 1));
        guard.validate(peer.ip().unwrap().ip());
        assert!(guard.spend(Some(&peer), 1 << 30));
        assert!(!guard.spend(Some(&neighbour), 1));
        assert!(guard.spend(None, 1));
    }

    #[test]
    fn would_admit_takes_no_token() {
        let guard = Guard::new(rated(0.001, 1)).unwrap();
        let arrival = Arrival::one(from("192.0.2.1:7").as_bytes(), 1);
        assert!(guard.would_admit(&arrival) && guard.would_admit(&arrival));
        assert_eq!(guard.admit(&mut [arrival]), 0);
        assert!(!guard.would_admit(&arrival));
        assert_eq!(guard.counts().admitted, 1);
    }
}
