//! Receivers: a sink for other programs' datagrams, and the upper limit of a receiver.

use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::args::{Args, Common, Result};
use crate::json::{self, Line};
use crate::ring::Ring;
use crate::sys;

/// Without `UDP_GRO` each message is one datagram, so larger batches pay off.
const PLAIN_SLOTS: usize = 256;
const GRO_SLOTS: usize = 64;
/// How much later than asked the kernel usually ends a sleep: see `prctl(2)`.
const TIMER_SLACK: Duration = Duration::from_micros(50);
const LONGEST_MESSAGE: usize = 65_536;

/// `sink`: receives everything that is sent to its port on any local address, as fast as possible.
pub(crate) fn sink(args: &mut Args) -> Result<Line> {
    let buffer = args.optional("rcvbuf")?;
    let common = args.start()?;
    receive(&sys::bind(Ipv4Addr::UNSPECIFIED, buffer)?, true, None, common)
}

/// `limit-recv`: one system call in a loop: `recvmmsg`, with or without `UDP_GRO`, or `recvfrom`. With
/// `coalesce`, it sleeps for that number of seconds before each.
pub(crate) fn limit(args: &mut Args) -> Result<Line> {
    let (gro, single, buffer) = (args.flag("gro"), args.flag("single"), args.optional("rcvbuf")?);
    let force = args.flag("force");
    let coalesce = args.optional("coalesce")?.map(Duration::try_from_secs_f64).transpose()?;
    let common = args.start()?;
    let socket = sys::bind(Ipv4Addr::LOCALHOST, buffer)?;
    if let (true, Some(bytes)) = (force, buffer) {
        sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)?;
    }
    if single { receive_single(&socket, common) } else { receive(&socket, gro, coalesce, common) }
}

fn receive_single(socket: &UdpSocket, mut common: Common) -> Result<Line> {
    let mut buffer = vec![0; common.size.max(2048)];
    json::announce(socket.local_addr()?.port());
    let mut bytes = 0;
    while !common.stop.is_time_over() {
        match socket.recv_from(&mut buffer) {
            Ok((len, _)) => {
                bytes += len;
                common.counter.add(1);
            }
            Err(error) if sys::is_retry(&error) && common.stop.is_due() => break,
            Err(error) if sys::is_retry(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    result(socket, &common, bytes)
}

fn receive(
    socket: &UdpSocket,
    gro: bool,
    coalesce: Option<Duration>,
    mut common: Common,
) -> Result<Line> {
    let mut ring = if gro {
        sys::set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 1)?;
        Ring::new(GRO_SLOTS, LONGEST_MESSAGE)
    } else {
        // A socket that coalesces has few datagrams at a time, whose headers are then cold.
        let slots = if coalesce.is_some() { GRO_SLOTS } else { PLAIN_SLOTS };
        Ring::new(slots, common.size.max(2048))
    };
    json::announce(socket.local_addr()?.port());
    let mut bytes = 0;
    let flags = if coalesce.is_some() { libc::MSG_DONTWAIT } else { libc::MSG_WAITFORONE };
    while !common.stop.is_time_over() {
        if let Some(time) = coalesce {
            thread::sleep(time.saturating_sub(TIMER_SLACK));
        }
        let messages = match ring.receive(socket, flags, gro) {
            Ok(messages) => messages,
            // Checked only when the queue is empty, so that everything queued is counted.
            Err(error) if sys::is_retry(&error) && common.stop.is_due() => break,
            Err(error) if sys::is_retry(&error) => continue,
            Err(error) => return Err(error.into()),
        };
        let mut datagrams = 0;
        for slot in 0..messages {
            let message = ring.message(slot);
            datagrams += message.datagrams();
            bytes += message.len;
        }
        common.counter.add(datagrams);
    }
    result(socket, &common, bytes)
}

fn result(socket: &UdpSocket, common: &Common, bytes: usize) -> Result<Line> {
    Ok(Line::default()
        .with("received", common.counter.total())
        .with("bytes", bytes)
        .with("kernel_drops", sys::kernel_drops(socket)?)
        .with("seconds", common.stop.elapsed().as_secs_f64())
        .with("cpu_seconds", sys::cpu_time()?.as_secs_f64()))
}
