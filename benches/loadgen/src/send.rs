//! Senders: the load for a receiver, and the upper limit of a sender.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use crate::args::{Args, Common, Result};
use crate::json::Line;
use crate::ring::Ring;
use crate::sys;

/// The number of messages per `sendmmsg` when sending to one peer.
const MESSAGES: usize = 64;
/// The same if each message is a run of up to 64 datagrams.
const RUNS: usize = 16;

/// `blast`: sends to one port as fast as possible, or at a rate.
pub(crate) fn blast(args: &mut Args) -> Result<Line> {
    let (peer, gso) = (args.peer()?, args.flag("gso"));
    let rate: Option<f64> = args.optional("rate")?;
    let from = args.optional("from")?.unwrap_or(Ipv4Addr::LOCALHOST);
    let mut common = args.start()?;
    let socket = UdpSocket::bind((from, 0))?;
    socket.connect(peer)?;
    let mut messages = Messages::new(common.size, gso, &[None]);
    while !common.stop.is_due() {
        let due = rate.map(|rate| rate * common.stop.elapsed().as_secs_f64());
        if due.is_some_and(|due| common.counter.total() as f64 > due) {
            thread::sleep(Duration::from_micros(50));
            continue;
        }
        messages.send(&socket, &mut common)?;
    }
    Ok(result(&common)?.with("datagrams_per_message", messages.datagrams))
}

/// `peers`: sends single datagrams from many sockets in turn, each when it is due if there is a
/// rate. It never sleeps, so that no datagram is late.
pub(crate) fn peers(args: &mut Args) -> Result<Line> {
    let (receiver, count) = (args.peer()?, args.required("peers")?);
    let rate: Option<f64> = args.optional("rate")?;
    let mut common = args.start()?;
    let sockets = (0..count)
        .map(|_| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(receiver)?;
            Ok(socket)
        })
        .collect::<io::Result<Vec<_>>>()?;
    let payload = vec![b'x'; common.size];
    let started = Instant::now();
    for socket in sockets.iter().cycle() {
        let due = |rate: f64| rate * started.elapsed().as_secs_f64();
        while !common.stop.is_due()
            && rate.is_some_and(|rate| common.counter.total() as f64 > due(rate))
        {
            std::hint::spin_loop();
        }
        if common.stop.is_due() {
            break;
        }
        match socket.send(&payload) {
            Ok(_) => common.counter.add(1),
            Err(error) if sys::is_refused(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(result(&common)?)
}

/// `limit-send`: one system call in a loop, to one peer or to many in turn.
pub(crate) fn limit(args: &mut Args) -> Result<Line> {
    let (first, mode) = (args.peer()?, args.required::<String>("mode")?);
    let peers = addresses(first, args.optional("peers")?.unwrap_or(1));
    let mut common = args.start()?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    if mode == "sendto" {
        let payload = vec![b'x'; common.size];
        while !common.stop.is_due() {
            for peer in peers.iter().cycle().take(MESSAGES.max(peers.len())) {
                socket.send_to(&payload, peer)?;
            }
            common.counter.add(MESSAGES.max(peers.len()));
        }
        return Ok(result(&common)?);
    }
    if !["sendmmsg", "gso"].contains(&mode.as_str()) {
        return Err(format!("unknown mode {mode:?}").into());
    }
    let targets: Vec<_> = peers.into_iter().map(Some).collect();
    let mut messages = Messages::new(common.size, mode == "gso", &targets);
    while !common.stop.is_due() {
        messages.send(&socket, &mut common)?;
    }
    Ok(result(&common)?.with("datagrams_per_message", messages.datagrams))
}

fn result(common: &Common) -> io::Result<Line> {
    Ok(Line::default()
        .with("sent", common.counter.total())
        .with("seconds", common.stop.elapsed().as_secs_f64())
        .with("cpu_seconds", sys::cpu_time()?.as_secs_f64()))
}

/// Loopback addresses that a socket bound to all addresses receives on.
fn addresses(first: SocketAddrV4, count: usize) -> Vec<SocketAddrV4> {
    let others = (0..count).map(|index| {
        let host = Ipv4Addr::new(127, 1, (index / 250) as u8, (index % 250 + 1) as u8);
        SocketAddrV4::new(host, first.port())
    });
    if count == 1 { vec![first] } else { others.collect() }
}

/// The messages that every `sendmmsg` sends.
struct Messages {
    ring: Ring,
    /// The number of datagrams in each message.
    datagrams: usize,
}

impl Messages {
    fn new(size: usize, gso: bool, targets: &[Option<SocketAddrV4>]) -> Self {
        let datagrams = if gso { sys::run_len(size) } else { 1 };
        let len = size * datagrams;
        let slots = targets.len().max(if gso { RUNS } else { MESSAGES });
        let mut ring = Ring::new(slots, len);
        for (slot, to) in (0..slots).zip(targets.iter().cycle()) {
            ring.slot(slot).fill(b'x');
            ring.prepare(slot, len, *to, (datagrams > 1).then_some(size));
        }
        Self { ring, datagrams }
    }

    fn send(&mut self, socket: &UdpSocket, common: &mut Common) -> io::Result<()> {
        let mut next = 0;
        while next < self.ring.slots() {
            match self.ring.send(socket, next..self.ring.slots(), 0) {
                Ok(sent) => {
                    next += sent;
                    common.counter.add(sent * self.datagrams);
                }
                Err(error) if sys::is_refused(&error) && !common.stop.is_due() => {}
                Err(error) if sys::is_refused(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
