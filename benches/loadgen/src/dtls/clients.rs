//! Clients of a DTLS server.

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use super::{Client, PATIENCE, client_context};
use crate::args::{Args, Result};
use crate::json::{self, Line};
use crate::load::IDLE;

/// `dtls-load`: clients with a session each, which take turns so that a number of them wait for a
/// reply. A line says when all handshakes are complete. A request without a reply before the timeout
/// is counted as lost and replaced; with `--sleep`, the clients sleep briefly when there is nothing
/// to do.
///
/// At the end it waits for the outstanding replies, so the result accounts for every request. The
/// number of received replies includes those that were late, or not expected at all. Then it ends the
/// sessions.
pub(crate) fn load(args: &mut Args) -> Result<Line> {
    let (peer, sleeps) = (args.peer()?, args.flag("sleep"));
    let clients = args.optional("clients")?.unwrap_or(1000);
    let window = args.optional("window")?.unwrap_or(256).min(clients);
    let timeout = Duration::try_from_secs_f64(args.optional("timeout")?.unwrap_or(0.5))?;
    let mut common = args.start()?;
    if window == 0 {
        return Err("no client, or no request in flight, is not possible".into());
    }
    let context = client_context()?;
    let mut clients =
        (0..clients).map(|_| Client::connect(&context, peer)).collect::<Result<Vec<_>>>()?;
    for client in &clients {
        client.socket.set_nonblocking(true)?;
    }
    json::announce(peer.port());
    let (mut request, mut reply) = (vec![0; common.size.max(size_of::<u64>())], vec![0; 1 << 14]);
    let mut in_flight = VecDeque::new();
    let (mut next, mut lost, mut late) = (0_usize, 0_u64, 0_u64);
    loop {
        // At least one window is sent, even if the handshakes have taken all the time.
        while in_flight.len() < window && (next < window || !common.stop.is_due()) {
            let index = next % clients.len();
            request[..8].copy_from_slice(&(next as u64).to_ne_bytes());
            clients[index].send(&request)?;
            in_flight.push_back((index, (next as u64).to_ne_bytes(), Instant::now()));
            next += 1;
        }
        // Replies arrive in the order of the requests, so the first one is the next to arrive.
        let Some(&(index, id, sent_at)) = in_flight.front() else { break };
        match clients[index].receive(&mut reply)? {
            Some(reply) if reply.len() == request.len() && reply.starts_with(&id) => {
                common.counter.add(1);
            }
            // Late, and counted as lost; or not expected at all.
            Some(_) => {
                late += 1;
                continue;
            }
            None if sent_at.elapsed() < timeout => {
                if sleeps {
                    thread::sleep(IDLE);
                }
                continue;
            }
            None => lost += 1,
        }
        in_flight.pop_front();
    }
    // Some servers do not answer the end of a session.
    let mut waits = true;
    for client in clients {
        waits = client.close(waits)?;
    }
    Ok(Line::default()
        .with("sent", next as u64)
        .with("received", common.counter.total() + late)
        .with("losses", lost)
        .with("late", late))
}

/// `dtls-handshakes`: full handshakes, a number of them at a time, each from a port of its own. Each
/// ends with a `close_notify`.
pub(crate) fn handshakes(args: &mut Args) -> Result<Line> {
    let peer = args.peer()?;
    let window = args.optional("window")?.unwrap_or(16);
    let mut common = args.start()?;
    let context = client_context()?;
    let mut under_way = VecDeque::new();
    while !common.stop.is_due() {
        while under_way.len() < window {
            let client = Client::start(&context, peer)?;
            client.socket.set_nonblocking(true)?;
            under_way.push_back((client, Instant::now()));
        }
        let mut waits = true;
        for _ in 0..window {
            let Some((mut client, started_at)) = under_way.pop_front() else { break };
            if started_at.elapsed() > PATIENCE {
                return Err("a handshake does not end".into());
            }
            match client.step()? {
                Some(true) => {
                    client.close(false)?;
                    common.counter.add(1);
                    waits = false;
                    continue;
                }
                Some(false) => waits = false,
                None => {}
            }
            under_way.push_back((client, started_at));
        }
        if waits {
            thread::yield_now();
        }
    }
    Ok(Line::default().with("handshakes", common.counter.total()))
}

/// `dtls-pingpong`: one request at a time, as a plain loop makes them.
pub(crate) fn pingpong(args: &mut Args) -> Result<Line> {
    let peer = args.peer()?;
    let mut common = args.start()?;
    let mut client = Client::connect(&client_context()?, peer)?;
    let (mut request, mut reply) = (vec![0; common.size.max(size_of::<u64>())], vec![0; 1 << 14]);
    let (mut next, mut lost) = (0_u64, 0_u64);
    while !common.stop.is_due() {
        next += 1;
        request[..8].copy_from_slice(&next.to_ne_bytes());
        client.send(&request)?;
        loop {
            match client.receive(&mut reply)? {
                Some(reply) if *reply == *request => common.counter.add(1),
                Some(_) => continue,
                None => lost += 1,
            }
            break;
        }
    }
    Ok(Line::default().with("replies", common.counter.total()).with("losses", lost))
}
