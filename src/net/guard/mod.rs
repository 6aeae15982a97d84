//! Who is heard, how often, and how much he is answered: checked on arrival, before anybody makes
//! anything of a datagram.
//!
//! Memory is bounded, whoever sends: see [`table`]. (Crates that limit rates by key keep a map that
//! grows with the keys. Here the keys are the attacker's.)

mod bucket;
mod counters;
mod filter;
mod networks;
mod table;
mod watch;

pub use counters::Tally;
pub use filter::{filter, header, run};
pub use networks::{NetworkError, Networks, parse_network};
pub(super) use watch::{REFUSALS, Watch};

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::time::Instant;

use libc::sock_filter;

use self::bucket::Rate;
use self::counters::Counters;
use self::networks::MAPPED_LEN;
use self::table::{Place, Table};
use super::address::{Address, AddressKind};
use super::fork_mutex::{ForkMutex, ForkMutexGuard, Inherit};

/// What a guard checks. What is `None` it does not.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Whom it hears.
    pub networks: Option<Networks>,
    /// Whether the kernel is given the networks as a filter.
    pub filters: bool,
    /// How many datagrams a second it lets pass from one source, and how many at once.
    pub rate: Option<(f64, u32)>,
    /// Addresses of IPv4 with so many bits in common are one source.
    pub prefix_v4: u8,
    /// Addresses of IPv6 with so many bits in common are one source.
    pub prefix_v6: u8,
    /// How many datagrams a second it lets pass in all.
    pub ceiling: Option<f64>,
    /// How many bytes may go to an address for each that came from it.
    pub amplification: Option<f64>,
    /// The longest payload that it lets pass.
    pub max_size: Option<usize>,
    /// How many sources it remembers.
    pub sources: usize,
}

impl Default for Policy {
    /// No check at all.
    fn default() -> Self {
        Self {
            networks: None,
            filters: true,
            rate: None,
            prefix_v4: 32,
            prefix_v6: 64, // of IPv6 one customer has a network of at least so many addresses
            ceiling: None,
            amplification: None,
            max_size: None,
            sources: 1 << 18,
        }
    }
}

/// Why a policy cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyError {
    /// What is wrong with it.
    Wrong(&'static str),
    /// There is no memory for what is to be remembered.
    NoMemory(&'static str),
}

/// Checks the datagrams of one or more sockets.
pub struct Guard {
    policy: Policy,
    filter: Option<Vec<sock_filter>>,
    rate: Option<Rate>,
    ceiling: Option<Rate>,
    memory: Option<ForkMutex<Memory>>,
    counters: Counters,
    started: Instant,
}

/// What it remembers.
struct Memory {
    table: Table,
    /// When the bucket of all sources together is full.
    ceiling_full: u64,
}

/// A child remembers what its parent did. These are numbers in places of their own, of which any is as
/// good as the next: in the middle of a change, one source's are wrong.
impl Inherit for Memory {
    fn inherit(&mut self) {}
}

/// What came in one message of the kernel's, which is of one source.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    source: Option<IpAddr>,
    /// Bytes of all datagrams.
    bytes: usize,
    /// Bytes of the longest.
    longest: usize,
    datagrams: usize,
    /// How many of them, from the first on, are too long.
    oversized: usize,
    /// How many of the others pass, from the first on.
    passing: usize,
    hash: u64,
}

/// The guard's word on a datagram that would amplify what came from where it is to go.
#[derive(Debug)]
struct TooMuch;

impl Guard {
    /// A guard that has heard nobody yet.
    pub fn new(policy: Policy) -> Result<Self, PolicyError> {
        let limit = |rate: Option<(f64, u32)>, error| {
            rate.map(|(rate, burst)| Rate::new(rate, burst).ok_or(PolicyError::Wrong(error)))
                .transpose()
        };
        let rate = limit(
            policy.rate,
            "rate must be a positive number of datagrams a second, and burst at least 1",
        )?;
        // A tenth of a second's worth at once, of which strangers leave half to the known.
        let ceiling = policy.ceiling.map(|ceiling| (ceiling, ((ceiling / 10.0) as u32).max(64)));
        let ceiling = limit(ceiling, "ceiling must be a positive number of datagrams a second")?;
        if policy.amplification.is_some_and(|factor| !(factor > 0.0 && factor.is_finite())) {
            return Err(PolicyError::Wrong("amplification must be a positive number"));
        }
        if policy.prefix_v4 > 32 || policy.prefix_v6 > 128 {
            return Err(PolicyError::Wrong("prefixes must be at most 32 and 128 bits"));
        }
        if !(8..=1 << 24).contains(&policy.sources) {
            return Err(PolicyError::Wrong("sources must be in 8 to 16777216"));
        }
        let remembers = rate.is_some() || ceiling.is_some() || policy.amplification.is_some();
        let table = remembers.then(|| Table::new(policy.sources.next_power_of_two()));
        let table = table
            .transpose()
            .map_err(|_| PolicyError::NoMemory("there is no memory for so many sources"))?;
        let memory = table.map(|table| ForkMutex::new(Memory { table, ceiling_full: 0 }));
        let filter = policy.networks.as_ref().filter(|_| policy.filters).and_then(filter);
        let counters = Counters::new()
            .map_err(|_| PolicyError::NoMemory("there is no memory for the guard's counters"))?;
        let started = Instant::now();
        Ok(Self { policy, filter, rate, ceiling, memory, counters, started })
    }

    /// What it checks.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The networks as a filter for the kernel, where that can have them.
    pub fn filter(&self) -> Option<&[sock_filter]> {
        self.filter.as_deref()
    }

    /// What became of the datagrams so far, in this process, the one that made the guard, and all
    /// that were forked from that since.
    pub fn tally(&self) -> Tally {
        self.counters.sum()
    }

    /// Decides of each arrival how many of its datagrams pass, and says how many do not.
    pub fn admit(&self, arrivals: &mut [Arrival]) -> usize {
        self.admit_at(arrivals, self.now())
    }

    /// Whether a datagram would pass now. Nothing is counted or remembered.
    pub fn would_admit(&self, arrival: &Arrival) -> bool {
        let now = self.now();
        let mut arrival = *arrival;
        self.check(&mut arrival, &mut Tally::default());
        if arrival.passing == 0 {
            return false;
        }
        let (Some(source), Some(memory)) = (arrival.source, self.memory()) else { return true };
        let hash = memory.table.hash(self.rate_key(source));
        let place = memory.table.find(hash);
        let is_known = place.is_some_and(Place::is_known);
        let full = memory.table.full(place.unwrap_or_else(|| memory.table.place_for(hash, now)));
        self.rate.is_none_or(|rate| rate.room(full, now) > 0)
            && self.ceiling_room(&memory, is_known, now) > 0
    }

    /// Whether it limits what is sent.
    pub fn limits_sending(&self) -> bool {
        self.policy.amplification.is_some()
    }

    /// Takes a datagram that is to be sent off what its address may be sent. If that is less, the
    /// datagram must not be sent. The connected peer, who has no address here, is one that the user
    /// has chosen, and may be sent anything.
    pub fn spend(&self, to: Option<&Address>, bytes: usize) -> bool {
        let (true, Some(to)) = (self.limits_sending(), to.and_then(Address::ip)) else {
            return true;
        };
        self.memory().is_none_or(|mut memory| {
            let hash = memory.table.hash(key(to.ip()));
            let place = memory.table.find(hash);
            place.is_some_and(|place| memory.table.spend(place, bytes as u64))
        })
    }

    /// Gives back what a datagram has taken that was not sent after all.
    pub fn refund(&self, to: Option<&Address>, bytes: usize) {
        if let (true, Some(to)) = (self.limits_sending(), to.and_then(Address::ip))
            && let Some(mut memory) = self.memory()
        {
            let hash = memory.table.hash(key(to.ip()));
            if let Some(place) = memory.table.find(hash) {
                memory.table.grant(place, bytes as u64);
            }
        }
    }

    /// Counts a datagram that must not be sent, and makes the error that says so: `EPERM`.
    pub(super) fn refuse_to_send(&self) -> io::Error {
        self.counters.count(Tally { over_amplification: 1, ..Tally::default() });
        io::Error::new(io::ErrorKind::PermissionDenied, TooMuch)
    }

    /// Takes the caller's word that an address is its sender's own (RFC 9000, section 8): it may be
    /// sent anything from now on, and counts as known.
    pub fn validate(&self, address: IpAddr) {
        let now = self.now();
        if let Some(mut memory) = self.memory() {
            for key in [key(address), self.rate_key(address)] {
                let hash = memory.table.hash(key);
                memory.table.validate(hash, now);
            }
        }
    }

    fn admit_at(&self, arrivals: &mut [Arrival], now: u64) -> usize {
        let mut tally = Tally::default();
        for arrival in &mut *arrivals {
            self.check(arrival, &mut tally);
        }
        if let Some(mut memory) = self.memory() {
            for arrival in &mut *arrivals {
                if let Some(source) = arrival.source {
                    arrival.hash = memory.table.hash(self.rate_key(source));
                }
            }
            let is_shut = self.is_shut(&memory, now);
            for arrival in &*arrivals {
                if !is_shut || memory.table.may_be_known(arrival.hash) {
                    memory.table.prefetch(arrival.hash);
                }
            }
            for arrival in &mut *arrivals {
                if let Some(source) = arrival.source.filter(|_| arrival.passing > 0) {
                    self.charge(&mut memory, arrival, source, now, &mut tally);
                }
            }
        }
        let total: usize = arrivals.iter().map(|arrival| arrival.datagrams).sum();
        let passing: usize = arrivals.iter().map(|arrival| arrival.passing).sum();
        tally.admitted = passing as u64;
        self.counters.count(tally);
        total - passing
    }

    /// Checks what needs no memory.
    fn check(&self, arrival: &mut Arrival, tally: &mut Tally) {
        if let (Some(networks), Some(source)) = (&self.policy.networks, arrival.source)
            && !networks.allow(source)
        {
            tally.denied += arrival.datagrams as u64;
            arrival.passing = 0;
            return;
        }
        if let Some(max_size) = self.policy.max_size {
            arrival.oversized = arrival.count_oversized(max_size);
            arrival.passing -= arrival.oversized;
            tally.oversized += arrival.oversized as u64;
        }
    }

    /// Takes as many tokens as there are, up to one for each datagram.
    fn charge(
        &self,
        memory: &mut Memory,
        arrival: &mut Arrival,
        source: IpAddr,
        now: u64,
        tally: &mut Tally,
    ) {
        let wanted = arrival.passing as u64;
        if self.is_shut(memory, now) && !memory.table.may_be_known(arrival.hash) {
            tally.over_ceiling += wanted;
            arrival.passing = 0;
            return;
        }
        let place = memory.table.find(arrival.hash);
        // Who is refused changes nothing in the table, and costs no more than the look.
        let is_known = place.is_some_and(Place::is_known);
        let in_ceiling = self.ceiling_room(memory, is_known, now).min(wanted);
        tally.over_ceiling += wanted - in_ceiling;
        arrival.passing = 0;
        if in_ceiling == 0 {
            return;
        }
        let place = place.unwrap_or_else(|| memory.table.place_for(arrival.hash, now));
        let full = memory.table.full(place);
        let passing = self.rate.map_or(in_ceiling, |rate| rate.room(full, now).min(in_ceiling));
        tally.over_rate += in_ceiling - passing;
        if passing == 0 {
            return;
        }
        arrival.passing = passing as usize;
        let place = memory.table.settle(place, arrival.hash, now);
        if let Some(rate) = self.rate {
            memory.table.set_full(place, rate.take(full, now, passing));
        }
        if let Some(ceiling) = self.ceiling {
            memory.ceiling_full = ceiling.take(memory.ceiling_full, now, passing);
        }
        if let Some(factor) = self.policy.amplification {
            let Range { start, end } = arrival.passing();
            let place_of = |index: usize| arrival.bytes.min(index * arrival.longest);
            let bytes = place_of(end) - place_of(start);
            #[allow(clippy::cast_precision_loss)] // 64 KiB at the most
            let credit = (bytes as f64 * factor) as u64;
            // Of an address, even where the rate is that of its network.
            let hash = memory.table.hash(key(source));
            let place = if hash == arrival.hash { place } else { memory.table.hear(hash, now) };
            memory.table.grant(place, credit);
        }
    }

    /// Whether strangers find no room under the ceiling.
    fn is_shut(&self, memory: &Memory, now: u64) -> bool {
        self.ceiling_room(memory, false, now) == 0
    }

    fn ceiling_room(&self, memory: &Memory, is_known: bool, now: u64) -> u64 {
        match self.ceiling {
            None => u64::MAX,
            Some(ceiling) if is_known => ceiling.room(memory.ceiling_full, now),
            Some(ceiling) => ceiling.half_room(memory.ceiling_full, now),
        }
    }

    /// The number of the source that an address belongs to.
    fn rate_key(&self, address: IpAddr) -> u128 {
        let address = address.to_canonical();
        let prefix_len = match address {
            IpAddr::V4(_) => MAPPED_LEN + self.policy.prefix_v4,
            IpAddr::V6(_) => self.policy.prefix_v6,
        };
        key(address) & u128::MAX.checked_shl(128 - u32::from(prefix_len)).unwrap_or(0)
    }

    fn memory(&self) -> Option<ForkMutexGuard<'_, Memory>> {
        Some(self.memory.as_ref()?.lock())
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }
}

/// The number of an address, in which both families have a place.
fn key(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().into(),
        IpAddr::V6(address) => address.into(),
    }
}

impl Arrival {
    /// One datagram, given its sender as the kernel writes addresses.
    pub fn one(from: &[u8], len: usize) -> Self {
        Self::run(from, len, len, 1)
    }

    /// A run of datagrams that were glued together: `bytes` in all, of which the first, and longest,
    /// has `longest`.
    pub fn run(from: &[u8], bytes: usize, longest: usize, datagrams: usize) -> Self {
        let source = match AddressKind::of(from) {
            AddressKind::V4(address) => Some(IpAddr::V4(*address.ip())),
            AddressKind::V6(address) => Some(IpAddr::V6(*address.ip())),
            _ => None,
        };
        Self { source, bytes, longest, datagrams, oversized: 0, passing: datagrams, hash: 0 }
    }

    /// Which datagrams pass.
    pub fn passing(&self) -> Range<usize> {
        self.oversized..self.oversized + self.passing
    }

    /// How many are too long: all, or all but the last, which may be shorter.
    fn count_oversized(&self, max_size: usize) -> usize {
        let last = self.bytes - self.longest * (self.datagrams - 1);
        match (self.longest > max_size, last > max_size) {
            (false, _) => 0,
            (true, true) => self.datagrams,
            (true, false) => self.datagrams - 1,
        }
    }
}

impl fmt::Display for TooMuch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the guard's amplification limit: the address has not sent enough to be sent so much",
        )
    }
}

impl std::error::Error for TooMuch {}

#[cfg(test)]
mod tests {
    use super::*;
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
    fn what_is_refused_is_counted_by_its_reason() {
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
        let expected =
            Tally { admitted: 2, denied: 2, oversized: 1, over_rate: 2, ..Tally::default() };
        assert_eq!(guard.tally(), expected);
        assert_eq!(guard.tally().refused(), 5);
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
        assert_eq!((guard.tally().oversized, guard.tally().over_rate), (11, 1));
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
            now += 20_000; // 50,000 a second, for two seconds
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
    fn an_address_gets_back_no_more_than_its_due_until_it_is_vouched_for() {
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
    fn a_look_takes_no_token() {
        let guard = Guard::new(rated(0.001, 1)).unwrap();
        let arrival = Arrival::one(from("192.0.2.1:7").as_bytes(), 1);
        assert!(guard.would_admit(&arrival) && guard.would_admit(&arrival));
        assert_eq!(guard.admit(&mut [arrival]), 0);
        assert!(!guard.would_admit(&arrival));
        assert_eq!(guard.tally().admitted, 1);
    }

    #[test]
    fn a_policy_must_make_sense() {
        let with = |change: fn(&mut Policy)| {
            let mut policy = Policy::default();
            change(&mut policy);
            Guard::new(policy).is_ok()
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
