//! The limit of what an echo server can do.

use std::net::Ipv4Addr;

use crate::args::{Args, Result};
use crate::json::{self, Line};
use crate::ring::Ring;
use crate::sys;

const SLOTS: usize = 64;

/// `echo`: sends back every datagram, a batch at a time.
///
/// With `--offload`, several datagrams travel as one where possible: coalesced on receive
/// (`UDP_GRO`) and split on send (`UDP_SEGMENT`). With `--spin` it never sleeps.
pub(crate) fn echo(args: &mut Args) -> Result<Line> {
    let (offload, spin) = (args.flag("offload"), args.flag("spin"));
    let buffer = args.optional("rcvbuf")?;
    let mut common = args.start()?;
    let socket = sys::bind(Ipv4Addr::LOCALHOST, buffer)?;
    if offload {
        sys::set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1)?;
    }
    let mut ring = Ring::new(SLOTS, if offload { 65_536 } else { common.size.max(2048) });
    let flags = if spin { libc::MSG_DONTWAIT } else { libc::MSG_WAITFORONE };
    json::announce(socket.local_addr()?.port());
    while !common.stop.is_due() {
        let received = match ring.receive(&socket, flags, offload) {
            Ok(received) => received,
            Err(error) if sys::is_retry(&error) => continue,
            Err(error) => return Err(error.into()),
        };
        let datagrams: usize = (0..received).map(|slot| ring.message(slot).datagrams()).sum();
        let replies = ring.prepare_replies(received, offload);
        ring.send_all(&socket, replies)?;
        common.counter.add(datagrams);
    }
    Ok(Line::default()
        .with("echoed", common.counter.total())
        .with("kernel_drops", sys::kernel_drops(&socket)?)
        .with("seconds", common.stop.elapsed().as_secs_f64())
        .with("cpu_seconds", sys::cpu_time()?.as_secs_f64()))
}
