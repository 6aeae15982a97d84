//! Clients that keep a number of requests in flight each.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::args::{Args, Result};
use crate::histogram::Histogram;
use crate::json::Line;
use crate::ring::Ring;
use crate::sys::{self, Clock};

/// The length of a request's header: its number and the time when it was sent.
const HEADER: usize = 2 * size_of::<u64>();

/// How long to sleep when there is nothing to do.
pub(crate) const IDLE: Duration = Duration::from_micros(100);

/// `load`: a closed loop of clients. Each reply makes room for the next request. A request without
/// a reply before the timeout is counted as lost and replaced.
///
/// With `--gso` a client sends its whole window as one run, after all replies to the previous
/// window have arrived. The clients take turns without ever sleeping, so a server never has to wake
/// them. With `--sleep` they sleep briefly when there is nothing to do.
///
/// At the end it waits for the outstanding replies, so the result accounts for every request and
/// every reply.
pub(crate) fn load(args: &mut Args) -> Result<Line> {
    let (peer, gso, sleeps) = (args.peer()?, args.flag("gso"), args.flag("sleep"));
    let clients = args.optional("clients")?.unwrap_or(8);
    let window: usize = args.optional("window")?.unwrap_or(8);
    let warmup = args.optional("warmup")?.unwrap_or(0.0);
    let timeout = args.optional("timeout")?.unwrap_or(0.2);
    let mut common = args.start()?;
    let size = common.size;
    if size < HEADER || (gso && window > sys::run_len(size)) || window == 0 {
        return Err(format!("a window of {window} × {size} bytes is not possible").into());
    }
    let mut results = Results {
        clock: Clock::start(),
        counts_from: Duration::try_from_secs_f64(warmup)?.as_nanos() as u64,
        histogram: Histogram::new(),
        sent: 0,
        received: 0,
        lost: 0,
        late: 0,
    };
    let timeout = Duration::try_from_secs_f64(timeout)?.as_nanos() as u64;
    let mut clients = (0..clients)
        .map(|_| Client::new(peer, window, size, gso))
        .collect::<io::Result<Vec<_>>>()?;
    let mut ended_at = None;
    loop {
        let mut replies = 0;
        for client in &mut clients {
            replies += client.receive(&mut results)?;
            client.give_up(timeout, &mut results);
            if ended_at.is_none() {
                client.send(&mut results)?;
            }
        }
        common.counter.add(replies);
        if ended_at.is_none() && common.stop.is_due() {
            ended_at = Some(results.clock.now());
        }
        let in_flight: usize = clients.iter().map(|client| client.in_flight).sum();
        if ended_at.is_some() && in_flight == 0 {
            break;
        }
        if sleeps && replies == 0 {
            thread::sleep(IDLE);
        }
    }
    let ended_at = ended_at.unwrap_or_default();
    let seconds = ended_at.saturating_sub(results.counts_from) as f64 / 1e9;
    let mut drops = 0;
    for client in &clients {
        drops += sys::kernel_drops(&client.socket)?;
    }
    let line = Line::default()
        .with("replies", results.histogram.total())
        .with("seconds", seconds)
        .with("rate", results.histogram.total() as f64 / seconds)
        .with("sent", results.sent)
        .with("received", results.received)
        .with("kernel_drops", drops)
        .with("losses", results.lost)
        .with("late", results.late);
    Ok(results.histogram.describe(line))
}

struct Results {
    clock: Clock,
    /// The end of the warm-up; replies before it do not count.
    counts_from: u64,
    histogram: Histogram,
    /// Requests sent (including lost ones) and replies received (including late ones).
    sent: usize,
    received: usize,
    lost: u64,
    /// Replies to requests that had been counted as lost.
    late: u64,
}

struct Client {
    socket: UdpSocket,
    requests: Ring,
    replies: Ring,
    window: Vec<Flight>,
    /// The number of requests in flight.
    in_flight: usize,
    /// When to check for lost requests again.
    next_look: u64,
    next_id: u64,
    size: usize,
    gso: bool,
}

/// An entry of the window.
#[derive(Clone, Copy)]
struct Flight {
    id: u64,
    sent_at: u64,
    is_open: bool,
}

impl Client {
    fn new(peer: SocketAddrV4, window: usize, size: usize, gso: bool) -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(peer)?;
        socket.set_nonblocking(true)?;
        let (requests, replies) = if gso {
            sys::set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1)?;
            (Ring::new(1, window * size), Ring::new(window, 65_536))
        } else {
            (Ring::new(window, size), Ring::new(window, size))
        };
        let free = Flight { id: 0, sent_at: 0, is_open: false };
        Ok(Self {
            socket,
            requests,
            replies,
            window: vec![free; window],
            in_flight: 0,
            next_look: 0,
            next_id: 0,
            size,
            gso,
        })
    }

    /// Receives the queued replies.
    fn receive(&mut self, results: &mut Results) -> io::Result<usize> {
        let messages = match self.replies.receive(&self.socket, libc::MSG_DONTWAIT, self.gso) {
            Ok(messages) => messages,
            Err(error) if sys::is_retry(&error) || sys::is_refused(&error) => return Ok(0),
            Err(error) => return Err(error),
        };
        let now = results.clock.now();
        let mut answered = 0;
        for message in 0..messages {
            let segment = self.replies.message(message).segment.unwrap_or(self.size).max(1);
            results.received += self.replies.message(message).datagrams();
            for reply in self.replies.payload(message).chunks(segment) {
                let flight = reply.first_chunk().and_then(|id| {
                    let id = u64::from_ne_bytes(*id);
                    let place = (id % self.window.len() as u64) as usize;
                    let flight = &mut self.window[place];
                    (flight.is_open && flight.id == id).then_some(flight)
                });
                let Some(flight) = flight else {
                    results.late += 1;
                    continue;
                };
                flight.is_open = false;
                answered += 1;
                if now >= results.counts_from {
                    results.histogram.record(now - flight.sent_at);
                }
            }
        }
        self.in_flight -= answered;
        Ok(answered)
    }

    /// Frees the window's entries of lost requests. It checks a few times per timeout.
    fn give_up(&mut self, timeout: u64, results: &mut Results) {
        let now = results.clock.now();
        if now < self.next_look {
            return;
        }
        self.next_look = now + timeout / 4;
        for flight in &mut self.window {
            if flight.is_open && now - flight.sent_at > timeout {
                flight.is_open = false;
                self.in_flight -= 1;
                results.lost += 1;
            }
        }
    }

    /// Fills the window.
    fn send(&mut self, results: &mut Results) -> io::Result<()> {
        let free = self.window.len() - self.in_flight;
        if free == 0 || (self.gso && self.in_flight > 0) {
            return Ok(());
        }
        let (now, size, places) = (results.clock.now(), self.size, self.window.len() as u64);
        let mut requests = 0;
        for (place, flight) in (0..places).zip(&mut self.window) {
            if flight.is_open {
                continue;
            }
            // The request number determines the entry.
            *flight = Flight { id: self.next_id * places + place, sent_at: now, is_open: true };
            self.next_id += 1;
            let payload = if self.gso {
                &mut self.requests.slot(0)[requests * size..][..size]
            } else {
                &mut self.requests.slot(requests)[..size]
            };
            payload[..8].copy_from_slice(&flight.id.to_ne_bytes());
            payload[8..HEADER].copy_from_slice(&now.to_ne_bytes());
            requests += 1;
        }
        self.in_flight += requests;
        let messages = if self.gso {
            self.requests.prepare(0, requests * size, None, (requests > 1).then_some(size));
            1
        } else {
            (0..requests).for_each(|slot| self.requests.prepare(slot, size, None, None));
            requests
        };
        // A request that cannot be sent counts as lost and is replaced.
        match self.requests.send(&self.socket, 0..messages, libc::MSG_DONTWAIT) {
            Ok(sent) => results.sent += sent * requests / messages,
            Err(error) if sys::is_retry(&error) || sys::is_refused(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
