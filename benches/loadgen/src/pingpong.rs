//! One request at a time.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use crate::args::{Args, Result};
use crate::histogram::Histogram;
use crate::json::Line;
use crate::sys::{self, Clock};

/// `pingpong`: sends a request, waits for the reply, and repeats. With `--spin` it busy-waits.
pub(crate) fn pingpong(args: &mut Args) -> Result<Line> {
    let (peer, spin) = (args.peer()?, args.flag("spin"));
    let warmup = Duration::try_from_secs_f64(args.optional("warmup")?.unwrap_or(0.0))?;
    let mut common = args.start()?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(peer)?;
    socket.set_nonblocking(spin)?;
    socket.set_read_timeout(Some(sys::PATIENCE))?;
    let mut request = vec![0; common.size.max(size_of::<u64>())];
    let mut reply = request.clone();
    let (mut histogram, mut lost) = (Histogram::new(), 0_u64);
    let clock = Clock::start();
    while !common.stop.is_due() {
        let sent_at = clock.now();
        request[..8].copy_from_slice(&sent_at.to_ne_bytes());
        socket.send(&request)?;
        if is_answered(&socket, &request, &mut reply, &clock)? {
            common.counter.add(1);
            if sent_at > warmup.as_nanos() as u64 {
                histogram.record(clock.now() - sent_at);
            }
        } else {
            lost += 1;
        }
    }
    let seconds = (common.stop.elapsed().saturating_sub(warmup)).as_secs_f64();
    let line = Line::default()
        .with("replies", histogram.total())
        .with("seconds", seconds)
        .with("rate", histogram.total() as f64 / seconds)
        .with("losses", lost);
    Ok(histogram.describe(line))
}

/// Waits for the reply to a request; returns false on timeout. Late replies are ignored.
fn is_answered(
    socket: &UdpSocket,
    request: &[u8],
    reply: &mut [u8],
    clock: &Clock,
) -> io::Result<bool> {
    let deadline = clock.now() + sys::PATIENCE.as_nanos() as u64;
    loop {
        match socket.recv(reply) {
            Ok(len) if reply[..len] == *request => return Ok(true),
            Ok(_) => {}
            Err(error) if sys::is_retry(&error) && clock.now() < deadline => {}
            Err(error) if sys::is_retry(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}
