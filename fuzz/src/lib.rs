//! Properties that must hold for all input, which the fuzzer tries to refute.

mod sessions;

use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;

use ipnet::IpNet;
use tomada::net::error_queue::ErrorMessage;
use tomada::net::guard::{Networks, header, kernel_filter, parse_network, run};
use tomada::net::proxy_protocol::{Header, Origin, Proxies, Refusal};
use tomada::net::{Address, AddressKind, Meta, Split, cmsg};

pub use sessions::sessions;

/// A target: its name, which is also the name of its corpus, and the property to check.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 6] = [
    ("control_messages", control_messages),
    ("splitter", splitter),
    ("addresses", addresses),
    ("filters", filters),
    ("proxy_headers", proxy_headers),
    ("sessions", sessions),
];

/// Control messages lie within their buffer, and complete ones survive being encoded again.
pub fn control_messages(data: &[u8]) {
    let (mut again, mut whole, mut bytes) = (Vec::new(), Vec::new(), 0);
    let mut was_truncated = false;
    for message in cmsg::decode(data) {
        assert!(!was_truncated, "another message follows a truncated one");
        let (all, part) = (data.as_ptr_range(), message.data.as_ptr_range());
        assert!(all.start <= part.start && part.end <= all.end);
        bytes += message.data.len();
        was_truncated = message.is_truncated;
        if !was_truncated {
            cmsg::encode(&mut again, message.level, message.kind, message.data);
            whole.push(message);
        }
    }
    assert!(bytes <= data.len());
    assert_eq!(cmsg::decode(&again).collect::<Vec<_>>(), whole);

    let meta = Meta::decode(data);
    assert_eq!(Meta::segment(data), meta.segment);
    if let Some(source) = meta.source() {
        let mut control = cmsg::ControlBuffer::EMPTY;
        source.encode(&mut control);
        assert!(cmsg::decode(control.as_bytes()).count() == 1);
    }
    let (payload, control) = (Box::default(), data.into());
    let entry = ErrorMessage { payload, control, peer: Address::UNNAMED, flags: 0 };
    if let Some(error) = entry.decode() {
        assert!(error.offender.is_none_or(|offender| offender.ip().is_some()));
        assert!(error.mtu().is_none_or(|mtu| mtu == error.info));
    }
}

/// A PROXY header is valid only if it is complete, and then says the same whatever follows it. A
/// sender that is not trusted cannot choose its address.
pub fn proxy_headers(data: &[u8]) {
    static TRUSTED: LazyLock<Proxies> = LazyLock::new(|| trusting("0.0.0.0/0"));
    static UNTRUSTED: LazyLock<Proxies> = LazyLock::new(|| trusting("::/0"));
    let sender = Address::from(SocketAddr::from(([192, 0, 2, 1], 1)));
    let origin = TRUSTED.origin(sender.as_bytes(), data);
    let untrusted = UNTRUSTED.origin(sender.as_bytes(), data);
    if Header::is_at_start(data) {
        assert_eq!(untrusted, Err(Refusal::Untrusted));
    } else {
        assert_eq!(untrusted, Ok(Origin { client: None, header_len: 0 }));
    }
    let Ok(header) = Header::parse(data) else {
        assert_eq!(origin, Err(Refusal::Malformed));
        return;
    };
    assert!(Header::is_at_start(data));
    let origin = origin.expect("the header is valid");
    assert_eq!(origin.header_len, header.len);
    assert_eq!(origin.client.is_some(), header.client.is_some());
    assert_eq!(Header::parse(&data[..header.len]), Ok(header));
    assert!(Header::parse(&data[..header.len - 1]).is_err());
    if let Some(client) = header.client {
        let again = Header::encode(client, client).expect("one family");
        assert_eq!(Header::parse(&again), Ok(Header { client: Some(client), len: again.len() }));
    }
}

fn trusting(network: &str) -> Proxies {
    let network = parse_network(network).expect("it is a network");
    Proxies::new(Networks::new(Some(&[network]), &[]).expect("it is one"), None)
}

/// A coalesced message splits into datagrams that cover it completely and in order, and `keep`
/// leaves exactly the requested range of them.
pub fn splitter(data: &[u8]) {
    let mut numbers = Numbers(data);
    let (len, segment) = (numbers.size() % (1 << 13), numbers.size());
    let segment = (segment != 0 || len % 2 == 0).then_some(segment);
    let (from, to) = (numbers.size() % 256, numbers.size() % 256);

    let whole = Split::new(len, segment);
    let ranges = ranges_of(whole);
    assert_eq!(ranges.len(), whole.remaining());
    assert_eq!((ranges[0].start, ranges[ranges.len() - 1].end), (0, len));
    assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start && !pair[0].is_empty()));
    if let Some(segment) = segment.filter(|&segment| segment > 0) {
        let (last, others) = ranges.split_last().unwrap();
        assert!(others.iter().all(|range| range.len() == segment) && last.len() <= segment);
    }

    let (from, to) = (from.min(ranges.len() - 1), to.min(ranges.len()));
    if from < to {
        let mut some = whole;
        some.keep(&(from..to));
        assert_eq!(ranges_of(some), ranges[from..to]);
        assert_eq!(some.remaining(), to - from);
    }
}

fn ranges_of(mut split: Split) -> Vec<std::ops::Range<usize>> {
    let mut ranges = vec![split.range()];
    while split.advance() {
        ranges.push(split.range());
    }
    ranges
}

/// Parsing addresses from the kernel or from text never reads past the end, and encoding and
/// parsing the result again yields the same address.
pub fn addresses(data: &[u8]) {
    match (AddressKind::of(data), Address::from_bytes(data).ip()) {
        (AddressKind::V4(address), ip) => {
            assert_eq!(ip, Some(address.into()));
            assert_eq!(Address::from(address).kind(), AddressKind::V4(address));
        }
        (AddressKind::V6(address), ip) => {
            assert_eq!(ip, Some(address.into()));
            assert_eq!(Address::from(address).kind(), AddressKind::V6(address));
        }
        (AddressKind::Path(path), _) => assert!(!path.contains(&0)),
        (AddressKind::Abstract(name), _) => assert_eq!(name.first(), Some(&0)),
        (AddressKind::Unnamed | AddressKind::Other(_), ip) => assert_eq!(ip, None),
    }
    if let Ok(address) = Address::unix(data) {
        let end = data.iter().position(|&byte| byte == 0).unwrap_or(data.len());
        let expected = match data.first() {
            Some(0) => AddressKind::Abstract(data),
            _ => AddressKind::Path(&data[..end]),
        };
        assert_eq!(address.kind(), expected);
    } else {
        assert!(data.len() > 107);
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(address) = text.parse::<SocketAddr>() {
        assert_eq!(Address::from(address).ip(), Some(address));
    }
    match parse_network(text) {
        Ok(network) => assert_eq!(parse_network(&network.to_string()), Ok(network)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A kernel filter admits the same sources as the lists that it was compiled from, and both follow
/// the longest matching prefix.
pub fn filters(data: &[u8]) {
    let mut numbers = Numbers(data);
    let has_allowed = numbers.byte() % 2 == 1;
    let (mut allow, mut deny, mut probes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..numbers.byte() % 24 {
        let is_allowed = numbers.byte() % 2 == 1 && has_allowed;
        let network = numbers.network();
        if !allow.contains(&network) && !deny.contains(&network) {
            probes.extend([network.network(), network.broadcast()]);
            if is_allowed { allow.push(network) } else { deny.push(network) }
        }
    }
    while !numbers.0.is_empty() && probes.len() < 64 {
        probes.push(numbers.network().addr());
    }
    let list = has_allowed.then_some(&allow[..]);
    let networks = Networks::new(list, &deny).expect("no network is in both lists");
    let program = kernel_filter(&networks).expect("a list this short fits into a kernel filter");
    for probe in probes {
        let longest = |list: &[IpNet]| {
            list.iter().filter(|network| network.contains(&probe)).map(IpNet::prefix_len).max()
        };
        let expected = match (longest(&allow), longest(&deny)) {
            (None, None) => !has_allowed,
            (allowed, denied) => allowed > denied,
        };
        if probe.to_canonical() == probe {
            assert_eq!(networks.allow(probe), expected, "{probe}");
            assert_eq!(run(&program, &header(probe)), expected, "{probe}");
        }
    }
}

/// Reads bytes as numbers; yields zeroes once the bytes are used up.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }

    fn size(&mut self) -> usize {
        u32::from_ne_bytes(self.bytes()) as usize
    }

    /// A network as it appears in the lists: never an IPv4 network in IPv6 notation.
    fn network(&mut self) -> IpNet {
        let (kind, prefix_len) = (self.byte(), self.byte());
        let (address, longest) = match kind % 4 {
            0 => (IpAddr::from([10, 0, kind / 128, self.byte()]), 32),
            1 => (IpAddr::from(self.bytes::<4>()), 32),
            2 => {
                let mut octets = [0x20; 16];
                (octets[3], octets[8], octets[15]) = (self.byte(), kind / 64, self.byte());
                (IpAddr::from(octets), 128)
            }
            _ => {
                let mut octets = self.bytes::<16>();
                octets[0] |= 0x20;
                (IpAddr::from(octets), 128)
            }
        };
        IpNet::new_assert(address, prefix_len % (longest + 1)).trunc()
    }
}
