//! Lists of allowed and denied networks. The longest prefix that matches a source decides.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use crate::net::sys::with_room;

/// The verdict for every address, stored as the points where it changes: the lists of networks with
/// their overlaps resolved. A lookup is a binary search, and the kernel's filter is the same search
/// unrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Networks {
    pub(super) v4: Ranges<u32>,
    pub(super) v6: Ranges<u128>,
}

/// A verdict for each number from zero on, which flips at each of `changes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ranges<T> {
    pub(super) first: bool,
    pub(super) changes: Vec<T>,
}

/// An error in the lists of networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkError {
    /// The text is not an address or a network.
    Syntax(String),
    /// The address has bits set beyond the prefix, so a different network may have been meant.
    HostBits(String),
    /// The network is in both lists.
    InBoth(IpNet),
    /// Memory allocation failed.
    NoMemory,
}

/// Parses a network in CIDR notation, or a single address.
///
/// An IPv4-mapped network (`::ffff:192.0.2.0/120`) is that IPv4 network.
pub fn parse_network(text: &str) -> Result<IpNet, NetworkError> {
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse().map_err(|_| NetworkError::Syntax(text.to_owned()))?,
    };
    if network.addr() != network.network() {
        return Err(NetworkError::HostBits(text.to_owned()));
    }
    if let IpNet::V6(v6) = network
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && let Some(prefix_len) = v6.prefix_len().checked_sub(MAPPED_LEN)
        && let Ok(v4) = Ipv4Net::new(v4, prefix_len)
    {
        return Ok(v4.into());
    }
    Ok(network)
}

/// The length of the prefix of IPv4-mapped addresses.
pub(super) const MAPPED_LEN: u8 = 96;
const MAPPED_START: u128 = 0xffff_0000_0000;

/// A network as a range of numbers, with its verdict.
struct Rule {
    start: u128,
    end: u128,
    prefix_len: u8,
    is_allowed: bool,
}

impl Networks {
    /// Addresses outside all lists are denied if there is an `allow` list, and allowed otherwise.
    pub fn new(allow: Option<&[IpNet]>, deny: &[IpNet]) -> Result<Self, NetworkError> {
        let is_default = allow.is_none();
        let allow = allow.unwrap_or_default();
        let len = allow.len() + deny.len();
        let mut rules4 = with_room(len, "networks")?;
        // The kernel drops datagrams that arrive over IPv6 from IPv4-mapped addresses, so here a
        // mapped address always stands for IPv4, and `v4` decides.
        let mapped = Ipv6Addr::from(MAPPED_START);
        let mut rules6 = with_room(len + 1, "networks")?;
        rules6.push(Rule::new(mapped.into(), MAPPED_LEN, true));
        let listed = allow.iter().map(|net| (net, true)).chain(deny.iter().map(|net| (net, false)));
        for (network, is_allowed) in listed {
            let rule = Rule::new(network.network(), network.prefix_len(), is_allowed);
            match network {
                IpNet::V4(_) => rules4.push(rule),
                IpNet::V6(_) => rules6.push(rule),
            }
        }
        let in_both = |rule: &Rule, start: IpAddr| {
            NetworkError::InBoth(IpNet::new_assert(start, rule.prefix_len))
        };
        let v4 = Ranges::new(rules4, is_default, u32::MAX.into())?
            .map_err(|rule| in_both(&rule, std::net::Ipv4Addr::from(rule.start as u32).into()))?;
        let v6 = Ranges::new(rules6, is_default, u128::MAX)?
            .map_err(|rule| in_both(&rule, Ipv6Addr::from(rule.start).into()))?;
        let mut changes = with_room(v4.changes.len(), "networks")?;
        changes.extend(v4.changes.iter().map(|&change| change as u32));
        Ok(Self { v4: Ranges { first: v4.first, changes }, v6 })
    }

    /// Whether an address is allowed.
    pub fn allow(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.verdict(address.into()),
            IpAddr::V6(address) => self.v6.verdict(address.into()),
        }
    }
}

impl Rule {
    fn new(address: IpAddr, prefix_len: u8, is_allowed: bool) -> Self {
        let (start, bits) = match address {
            IpAddr::V4(address) => (u128::from(u32::from(address)), 32),
            IpAddr::V6(address) => (u128::from(address), 128),
        };
        let host_bits = bits - u32::from(prefix_len);
        let end = start | 1_u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1);
        Self { start, end, prefix_len, is_allowed }
    }
}

impl Ranges<u128> {
    /// Resolves overlapping rules, or returns a rule that contradicts another one. The error means
    /// that memory allocation failed.
    fn new(mut rules: Vec<Rule>, default: bool, last: u128) -> io::Result<Result<Self, Rule>> {
        // Two networks are either nested or disjoint. In this order, each one comes after those
        // that contain it.
        rules.sort_unstable_by_key(|rule| (rule.start, rule.prefix_len));
        let mut verdicts = with_room(2 * rules.len() + 1, "networks")?;
        verdicts.push((0, default));
        let mut set = |start, verdict| {
            if verdicts.last().is_some_and(|&(last, _)| last == start) {
                verdicts.pop();
            }
            verdicts.push((start, verdict));
        };
        // The networks that contain the current number, the smallest last.
        let mut open: Vec<Rule> = Vec::new();
        for rule in rules {
            if let Some(twin) = open.last()
                && (twin.start, twin.prefix_len) == (rule.start, rule.prefix_len)
            {
                if twin.is_allowed != rule.is_allowed {
                    return Ok(Err(rule));
                }
                continue;
            }
            while let Some(ended) = open.pop_if(|ended| ended.end < rule.start) {
                let around = open.last().map_or(default, |rule| rule.is_allowed);
                set(ended.end + 1, around);
            }
            set(rule.start, rule.is_allowed);
            open.push(rule);
        }
        while let Some(ended) = open.pop() {
            let around = open.last().map_or(default, |rule| rule.is_allowed);
            if ended.end < last {
                set(ended.end + 1, around);
            }
        }
        verdicts.dedup_by_key(|&mut (_, verdict)| verdict);
        let first = verdicts[0].1;
        let mut changes = with_room(verdicts.len() - 1, "networks")?;
        changes.extend(verdicts[1..].iter().map(|&(start, _)| start));
        Ok(Ok(Self { first, changes }))
    }
}

impl<T: Ord + Copy> Ranges<T> {
    fn verdict(&self, number: T) -> bool {
        let changes = self.changes.partition_point(|&change| change <= number);
        self.first ^ (changes % 2 == 1)
    }
}

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(text) => write!(f, "{text:?} is not an IP network or address"),
            Self::HostBits(text) => write!(f, "{text:?} has host bits set"),
            Self::NoMemory => f.write_str("not enough memory for the networks"),
            Self::InBoth(network) => write!(f, "{network} is both allowed and denied"),
        }
    }
}

impl std::error::Error for NetworkError {}

impl From<io::Error> for NetworkError {
    /// Only memory allocation can fail here.
    fn from(_: io::Error) -> Self {
        Self::NoMemory
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use prefix_trie::joint::JointPrefixMap;
    use proptest::prelude::*;

    fn networks(allow: Option<&[&str]>, deny: &[&str]) -> Result<Networks, NetworkError> {
        let parse = |texts: &[&str]| -> Result<Vec<IpNet>, NetworkError> {
            texts.iter().map(|text| parse_network(text)).collect()
        };
        let allow = allow.map(parse).transpose()?;
        Networks::new(allow.as_deref(), &parse(deny)?)
    }

    fn allows(networks: &Networks, address: &str) -> bool {
        networks.allow(address.parse().unwrap())
    }

    #[test]
    fn the_longest_prefix_wins() {
        let list = networks(
            Some(&["10.0.0.0/8", "10.1.2.0/24", "2001:db8::/32"]),
            &["10.1.0.0/16", "10.1.2.3", "2001:db8:1::/48"],
        );
        let list = list.unwrap();
        for allowed in ["10.0.0.0", "10.2.0.0", "10.1.2.4", "10.255.255.255", "2001:db8::1"] {
            assert!(allows(&list, allowed), "{allowed}");
        }
        for denied in ["9.255.255.255", "11.0.0.0", "10.1.0.0", "10.1.2.3", "2001:db8:1::", "::"] {
            assert!(!allows(&list, denied), "{denied}");
        }
    }

    #[test]
    fn other_addresses_are_denied_only_if_there_is_an_allow_list() {
        assert!(allows(&networks(None, &["10.0.0.0/8"]).unwrap(), "11.0.0.0"));
        assert!(!allows(&networks(Some(&["10.0.0.0/8"]), &[]).unwrap(), "11.0.0.0"));
        assert!(!allows(&networks(Some(&[]), &[]).unwrap(), "::1"));
        assert!(!allows(&networks(None, &["0.0.0.0/0"]).unwrap(), "255.255.255.255"));
        assert!(allows(&networks(None, &["0.0.0.0/0"]).unwrap(), "::1"));
    }

    #[test]
    fn ipv4_is_the_same_in_ipv6s_form() {
        let list = networks(None, &["::ffff:10.0.0.0/104", "192.0.2.1"]).unwrap();
        for denied in ["10.1.1.1", "::ffff:10.1.1.1", "::ffff:192.0.2.1"] {
            assert!(!allows(&list, denied), "{denied}");
        }
        assert!(allows(&networks(None, &["::/0"]).unwrap(), "::ffff:10.1.1.1"));
    }

    #[test]
    fn mistakes_are_named() {
        let message = |result: Result<Networks, NetworkError>| result.unwrap_err().to_string();
        let both = networks(Some(&["10.0.0.0/8"]), &["10.0.0.0/8"]);
        assert_eq!(message(both), "10.0.0.0/8 is both allowed and denied");
        assert_eq!(message(networks(None, &["10.0.0.1/8"])), "\"10.0.0.1/8\" has host bits set");
        for text in ["", "/", "10.0.0.0/33", "10.0.0", "::/129", "localhost", "::1%lo", "::1/ 3"] {
            let expected = format!("{text:?} is not an IP network or address");
            assert_eq!(message(networks(None, &[text])), expected);
        }
        assert!(networks(Some(&["10.0.0.0/8"; 2]), &[]).is_ok());
    }

    /// Networks from a small range, so that they overlap.
    pub(in super::super) fn any_network() -> impl Strategy<Value = IpNet> {
        let crowded4 = (0..256_u32, 0..=32_u8).prop_map(|(low, len)| {
            let address = u32::from_be_bytes([10, 1, low as u8 & 3, low as u8]);
            IpNet::new_assert(std::net::Ipv4Addr::from(address).into(), len)
        });
        let crowded6 = (any::<[u8; 3]>(), 0..=128_u8).prop_map(|(bytes, len)| {
            let mut octets = [0; 16];
            octets[..2].copy_from_slice(&[0x20, 1]);
            (octets[4], octets[9], octets[15]) = (bytes[0] & 1, bytes[1] & 1, bytes[2]);
            IpNet::new_assert(Ipv6Addr::from(octets).into(), len)
        });
        let any4 = (any::<u32>(), 0..=32_u8)
            .prop_map(|(ip, len)| IpNet::new_assert(std::net::Ipv4Addr::from(ip).into(), len));
        let any6 = (any::<u128>(), 0..=128_u8)
            .prop_map(|(ip, len)| IpNet::new_assert(Ipv6Addr::from(ip).into(), len));
        prop_oneof![crowded4, crowded6, any4, any6].prop_map(|network| network.trunc())
    }

    /// Two lists that do not contradict each other.
    pub(in super::super) fn any_lists()
    -> impl Strategy<Value = (Option<Vec<IpNet>>, Vec<IpNet>, Networks)> {
        let lists = (
            prop::option::of(prop::collection::vec(any_network(), 0..40)),
            prop::collection::vec(any_network(), 0..40),
        );
        lists.prop_filter_map("contradictory", |(allow, deny)| {
            let networks = Networks::new(allow.as_deref(), &deny).ok()?;
            Some((allow, deny, networks))
        })
    }

    /// Addresses where the verdict may change: the ends of each network, and their neighbours.
    pub(in super::super) fn probes<'a>(networks: impl Iterator<Item = &'a IpNet>) -> Vec<IpAddr> {
        let mut probes: Vec<IpAddr> =
            ["0.0.0.0", "255.255.255.255", "::", "::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
                .map(|text| text.parse().unwrap())
                .into();
        for network in networks {
            match (network.network(), network.broadcast()) {
                (IpAddr::V4(start), IpAddr::V4(end)) => {
                    let (start, end) = (u32::from(start), u32::from(end));
                    let near = [start, start.wrapping_sub(1), end, end.wrapping_add(1)];
                    probes.extend(near.map(|ip| IpAddr::V4(ip.into())));
                }
                (IpAddr::V6(start), IpAddr::V6(end)) => {
                    let (start, end) = (u128::from(start), u128::from(end));
                    let near = [start, start.wrapping_sub(1), end, end.wrapping_add(1)];
                    probes.extend(near.map(|ip| IpAddr::V6(ip.into())));
                }
                _ => unreachable!("both ends of a network have the same family"),
            }
        }
        probes
    }

    proptest! {
        #[test]
        fn the_verdict_is_that_of_a_prefix_trie((allow, deny, networks) in any_lists()) {
            let mut trie: JointPrefixMap<IpNet, bool> = JointPrefixMap::new();
            let listed = allow.iter().flatten().map(|network| (network, true));
            for (network, verdict) in listed.chain(deny.iter().map(|network| (network, false))) {
                trie.insert(*network, verdict);
            }
            for address in probes(allow.iter().flatten().chain(&deny)) {
                if address.to_canonical() != address {
                    continue;
                }
                let expected = trie.get_lpm(&IpNet::from(address)).map(|(_, verdict)| *verdict);
                prop_assert_eq!(networks.allow(address), expected.unwrap_or(allow.is_none()));
            }
        }
    }
}
