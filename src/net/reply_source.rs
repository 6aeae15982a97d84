//! The local address that each peer sent to, so that replies leave from there, and the proxy that it
//! came through.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::address::Address;
use super::meta::{Meta, Source};
use super::recv_ring::Received;
use super::socket::Socket;
use super::sys::with_room;

/// The reply sources of a socket's peers. They are recorded only if the socket is bound to all
/// addresses; otherwise there is only one. Proxies are always recorded.
#[derive(Default)]
pub struct ReplySources {
    is_on: AtomicBool,
    /// Whether peers come through proxies.
    has_proxies: AtomicBool,
    /// At most one entry for each hash of a peer.
    table: Mutex<Vec<Option<Entry>>>,
}

struct Entry {
    peer: Address,
    source: Option<Source>,
    proxy: Option<Address>,
}

/// The largest number of entries. Beyond it, a peer takes over another one's entry. Replies to that
/// one leave from the address that its route prefers, as from any socket.
const MOST_ENTRIES: usize = 512;

/// The largest number of entries if peers come through proxies. A datagram to a client whose proxy
/// was forgotten is lost.
const MOST_PROXIED: usize = 1 << 15;

/// The factor by which a table grows when two peers need the same entry.
const GROWTH: usize = 8;

impl ReplySources {
    /// Creates the table for a socket, which is connected or not. If the sources can differ, makes
    /// the kernel report them.
    pub fn of(socket: &Socket, is_connected: bool) -> Self {
        let is_bound_to_all = || {
            let address = socket.local_address();
            address.is_ok_and(|address| address.ip().is_some_and(|ip| ip.ip().is_unspecified()))
        };
        let is_on = !is_connected && is_bound_to_all() && socket.request_destination().is_ok();
        Self { is_on: AtomicBool::new(is_on), ..Self::default() }
    }

    /// Records the sources of datagrams as they are received.
    pub fn reader(&self) -> ReplySourceReader<'_> {
        let (from, proxy, control, source) = (Address::UNNAMED, None, Vec::new(), None);
        ReplySourceReader { sources: self, from, proxy, control, source }
    }

    /// The reply source of a peer; `None` if any address will do.
    pub fn source(&self, peer: &Address) -> Option<Source> {
        if !self.is_on.load(Ordering::Relaxed) {
            return None;
        }
        self.find(peer, |entry| entry.source)
    }

    /// Whether any peer came through a proxy.
    pub fn has_proxies(&self) -> bool {
        self.has_proxies.load(Ordering::Relaxed)
    }

    /// The proxy that a peer's last datagram came through.
    pub fn proxy(&self, peer: &Address) -> Option<Address> {
        if !self.has_proxies() {
            return None;
        }
        self.find(peer, |entry| entry.proxy)
    }

    fn find<T>(&self, peer: &Address, what: impl FnOnce(&Entry) -> Option<T>) -> Option<T> {
        let table = self.table();
        let entry = table.get(index(peer, table.len()))?.as_ref()?;
        if entry.peer == *peer { what(entry) } else { None }
    }

    /// Forgets the reply source of a peer, because the address no longer belongs to this machine.
    pub fn forget(&self, peer: &Address) {
        let mut table = self.table();
        let index = index(peer, table.len());
        if let Some(entry) = table.get_mut(index)
            && entry.as_ref().is_some_and(|entry| entry.peer == *peer)
        {
            *entry = None;
        }
    }

    fn put(&self, entry: Entry) {
        let mut table = self.table();
        if table.is_empty() {
            if table.try_reserve(1).is_err() {
                return; // it may forget
            }
            table.push(None);
        }
        let mut at = index(&entry.peer, table.len());
        while table.len() < self.most_entries()
            && table[at].as_ref().is_some_and(|other| other.peer != entry.peer)
        {
            let len = table.len() * GROWTH;
            let Ok(larger) = with_room(len, "the peers of a socket") else { break };
            let old = std::mem::replace(&mut *table, larger);
            table.resize_with(len, || None);
            for other in old.into_iter().flatten() {
                let at = index(&other.peer, len);
                table[at] = Some(other);
            }
            at = index(&entry.peer, len);
        }
        table[at] = Some(entry);
    }

    fn most_entries(&self) -> usize {
        if self.has_proxies() { MOST_PROXIED } else { MOST_ENTRIES }
    }

    fn table(&self) -> MutexGuard<'_, Vec<Option<Entry>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the reply sources of received datagrams, and records them.
pub struct ReplySourceReader<'a> {
    sources: &'a ReplySources,
    /// The last datagram's sender, control messages and source. Coalesced datagrams repeat them.
    from: Address,
    proxy: Option<Address>,
    control: Vec<u8>,
    source: Option<Source>,
}

impl ReplySourceReader<'_> {
    /// Records the reply source of a datagram, and returns it; `None` if any address will do.
    pub fn take(&mut self, datagram: &Received<'_>) -> Option<Source> {
        if !self.sources.is_on.load(Ordering::Relaxed) && datagram.proxy.is_none() {
            return None;
        }
        if self.control != datagram.control
            || self.from.as_bytes() != datagram.from
            || self.proxy.as_ref().map(Address::as_bytes) != datagram.proxy
        {
            self.from = Address::from_bytes(datagram.from);
            self.control.clear();
            self.control.extend_from_slice(datagram.control);
            self.source = Meta::decode(datagram.control).source();
            self.proxy = datagram.proxy.map(Address::from_bytes);
            if self.proxy.is_some() {
                self.sources.has_proxies.store(true, Ordering::Relaxed);
            }
            if self.source.is_some() || self.proxy.is_some() {
                let Self { from: peer, source, proxy, .. } = *self;
                self.sources.put(Entry { peer, source, proxy });
            }
        }
        self.source
    }
}

/// The index of a peer's entry in a table whose length is zero or a power of two.
fn index(peer: &Address, len: usize) -> usize {
    // FNV-1a: short, and good enough for a table that may forget.
    let hash = peer.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash >> 32) as usize & len.wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::cmsg::ControlBuffer;
    use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
    use std::os::fd::IntoRawFd;

    fn sources(is_on: bool) -> ReplySources {
        ReplySources { is_on: AtomicBool::new(is_on), ..ReplySources::default() }
    }

    fn peer(number: u16) -> Address {
        SocketAddr::from(([192, 0, 2, 1], 1024 + number)).into()
    }

    fn source(last: u8) -> Source {
        Source { address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)), interface: 0 }
    }

    /// Receives a datagram that the peer sent to the source.
    fn receive(reader: &mut ReplySourceReader<'_>, peer: &Address, to: Source) -> Option<Source> {
        let mut control = ControlBuffer::EMPTY;
        to.encode(&mut control);
        let (from, control) = (peer.as_bytes(), control.as_bytes());
        reader.take(&Received { payload: b"", from, proxy: None, control, flags: 0, session: None })
    }

    #[test]
    fn a_reply_leaves_from_the_address_that_the_peer_sent_to_last() {
        let sources = sources(true);
        assert_eq!(sources.source(&peer(1)), None);
        let mut reader = sources.reader();
        assert_eq!(receive(&mut reader, &peer(1), source(2)), Some(source(2)));
        assert_eq!(receive(&mut reader, &peer(2), source(2)), Some(source(2)));
        assert_eq!(receive(&mut reader, &peer(2), source(3)), Some(source(3)));
        assert_eq!(sources.source(&peer(1)), Some(source(2)));
        assert_eq!(sources.source(&peer(2)), Some(source(3)));
        assert_eq!(sources.source(&peer(3)), None);
    }

    #[test]
    fn a_datagram_without_control_messages_has_no_source() {
        let sources = sources(true);
        let mut reader = sources.reader();
        receive(&mut reader, &peer(1), source(2));
        let from = peer(1);
        let bare = Received {
            payload: b"",
            from: from.as_bytes(),
            proxy: None,
            control: b"",
            flags: 0,
            session: None,
        };
        assert_eq!(reader.take(&bare), None);
        assert_eq!(sources.source(&peer(1)), Some(source(2)));
    }

    #[test]
    fn nothing_is_recorded_on_a_socket_with_one_address() {
        let sources = sources(false);
        assert_eq!(receive(&mut sources.reader(), &peer(1), source(2)), None);
        assert_eq!(sources.source(&peer(1)), None);
        sources.forget(&peer(1));
    }

    #[test]
    fn only_the_peer_itself_is_forgotten() {
        let sources = sources(true);
        sources.forget(&peer(1));
        let mut reader = sources.reader();
        receive(&mut reader, &peer(1), source(2));
        // With a single entry, all peers share it.
        sources.forget(&peer(2));
        assert_eq!(sources.source(&peer(1)), Some(source(2)));
        sources.forget(&peer(1));
        assert_eq!(sources.source(&peer(1)), None);
    }

    #[test]
    fn a_table_grows_up_to_its_limit_and_then_replaces_entries() {
        let sources = sources(true);
        let mut reader = sources.reader();
        let known = |range: std::ops::Range<u16>| {
            range.filter(|&number| sources.source(&peer(number)).is_some()).count()
        };
        for number in 0..2 {
            receive(&mut reader, &peer(number), source(2));
        }
        assert_eq!(known(0..2), 2);
        for number in 0..5000 {
            receive(&mut reader, &peer(number), source(2));
            assert!(sources.source(&peer(number)).is_some(), "{number}");
        }
        assert_eq!(sources.table().len(), MOST_ENTRIES);
        assert!((1..=MOST_ENTRIES).contains(&known(0..5000)));
    }

    #[test]
    fn sources_are_recorded_only_if_the_socket_is_bound_to_all_addresses() {
        let is_on = |address: &str, connects: bool| {
            let socket = UdpSocket::bind(address).unwrap();
            if connects {
                socket.connect(("127.0.0.1", 9)).unwrap();
            }
            // SAFETY: the descriptor is given away.
            let socket = unsafe { Socket::adopt(socket.into_raw_fd(), None, None, None) }.unwrap();
            ReplySources::of(&socket, connects).is_on.into_inner()
        };
        assert!(is_on("0.0.0.0:0", false));
        assert!(!is_on("0.0.0.0:0", true));
        assert!(!is_on("127.0.0.1:0", false));
    }
}
