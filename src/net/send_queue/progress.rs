//! For all results of the kernel and all guards: each call fails or advances; each datagram is sent
//! once, or dropped with an error; and only sent datagrams are paid for.

use super::*;
use crate::net::cmsg;
use crate::net::gso::LONGEST_RUN;
use crate::net::sys::SEND_MESSAGES;
use proptest::collection::vec;
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;

const PEERS: u16 = 3;

/// The kernel's response to one call.
#[derive(Clone, Debug)]
enum Reply {
    /// Accepts this many messages, or all if there are fewer.
    Takes(usize),
    /// Fails the first message.
    Fails(c_int),
    /// Fails the first message if it is a run; otherwise accepts all messages before the next run.
    FailsRuns(c_int),
}

/// An event before a call.
#[derive(Clone, Debug)]
enum PriorEvent {
    Nothing,
    /// Adds to the budgets of peers.
    Earn(u16, usize),
    /// Removes or replaces the guard.
    Guard(Option<[usize; PEERS as usize]>),
    Corked(bool),
}

/// A guard: each peer's budget, the bytes deducted, and the number of calls.
#[derive(Debug, Default)]
struct Account {
    may: RefCell<[usize; PEERS as usize]>,
    taken: RefCell<[usize; PEERS as usize]>,
    asked: Cell<usize>,
}

fn index(to: Option<&Address>) -> usize {
    usize::from(to.and_then(Address::ip).unwrap().port())
}

impl Budget for Account {
    fn take(&self, to: Option<&Address>, bytes: usize) -> bool {
        self.asked.set(self.asked.get() + 1);
        let may = &mut self.may.borrow_mut()[index(to)];
        let enough = *may >= bytes;
        if enough {
            *may -= bytes;
            self.taken.borrow_mut()[index(to)] += bytes;
        }
        enough
    }

    fn give_back(&self, to: Option<&Address>, bytes: usize) {
        self.may.borrow_mut()[index(to)] += bytes;
        self.taken.borrow_mut()[index(to)] -= bytes;
    }

    fn refusal(&self) -> io::Error {
        io::Error::from_raw_os_error(libc::EPERM)
    }
}

/// A kernel that follows a script, and records the datagrams that it accepts.
struct Scripted {
    reply: Reply,
    is_corked: bool,
    /// How often each datagram was accepted, identified by its address in memory.
    taken: HashMap<usize, usize>,
    bytes: [usize; PEERS as usize],
    calls: usize,
    offered: usize,
}

impl Scripted {
    fn offered(message: &Outgoing<'_>) -> (Option<usize>, Vec<(usize, usize)>) {
        let segment = cmsg::decode(message.control.as_bytes())
            .find(|control| control.level == libc::SOL_UDP)
            .map(|control| usize::from(u16::from_ne_bytes([control.data[0], control.data[1]])));
        let mut datagrams = Vec::new();
        for memory in message.memory {
            let start = memory.address();
            let step = segment.unwrap_or(memory.len()).max(1);
            let offsets = (0..memory.len().max(1)).step_by(step);
            datagrams.extend(offsets.map(|at| (start + at, step.min(memory.len() - at))));
        }
        (segment, datagrams)
    }
}

impl Kernel for Scripted {
    fn send(&mut self, messages: &mut dyn Iterator<Item = Outgoing<'_>>) -> io::Result<usize> {
        self.calls += 1;
        let messages: Vec<_> = messages.collect();
        assert!((1..=SEND_MESSAGES).contains(&messages.len()));
        let parts: Vec<_> = messages.iter().map(Self::offered).collect();
        self.offered = parts.iter().map(|(_, datagrams)| datagrams.len()).sum();
        for (segment, datagrams) in &parts {
            let sizes: Vec<_> = datagrams.iter().map(|(_, len)| *len).collect();
            let (last, others) = sizes.split_last().unwrap();
            assert_eq!(segment.is_some(), sizes.len() > 1);
            assert!(sizes.len() <= LONGEST_RUN && !(segment.is_some() && self.is_corked));
            assert!(others.iter().all(|len| Some(*len) == *segment && last <= len && *last > 0));
        }
        let takes = match self.reply {
            Reply::Takes(some) => some.min(messages.len()),
            Reply::Fails(errno) => return Err(io::Error::from_raw_os_error(errno)),
            Reply::FailsRuns(errno) => {
                match parts.iter().take_while(|part| part.0.is_none()).count() {
                    0 => return Err(io::Error::from_raw_os_error(errno)),
                    singles => singles,
                }
            }
        };
        for (message, (_, datagrams)) in messages.iter().zip(parts).take(takes) {
            for (start, len) in datagrams {
                *self.taken.entry(start).or_default() += 1;
                self.bytes[index(message.to)] += len;
            }
        }
        Ok(takes)
    }

    fn is_corked(&mut self) -> bool {
        self.is_corked
    }
}

fn replies() -> impl Strategy<Value = Reply> {
    let errnos = prop::sample::select(vec![
        libc::EAGAIN,
        libc::EINTR,
        libc::EPERM,
        libc::EINVAL,
        libc::EIO,
        libc::EMSGSIZE,
        libc::ENOBUFS,
        libc::ENOMEM,
        libc::ECONNREFUSED,
        libc::ENETUNREACH,
    ]);
    prop_oneof![
        5 => (0..70_usize).prop_map(Reply::Takes),
        3 => errnos.clone().prop_map(Reply::Fails),
        2 => errnos.prop_map(Reply::FailsRuns),
    ]
}

fn events() -> impl Strategy<Value = PriorEvent> {
    let allowed = prop::array::uniform3(0..400_usize);
    prop_oneof![
        4 => Just(PriorEvent::Nothing),
        2 => (0..PEERS, 0..200_usize).prop_map(|(peer, bytes)| PriorEvent::Earn(peer, bytes)),
        1 => prop::option::of(allowed).prop_map(PriorEvent::Guard),
        1 => any::<bool>().prop_map(PriorEvent::Corked),
    ]
}

/// Runs more cases if a long run was requested.
fn config() -> ProptestConfig {
    let long = std::env::var_os("TOMADA_LONG").is_some_and(|long| long == "1");
    let mut config = ProptestConfig::default();
    config.cases *= if long { 200 } else { 4 };
    config.failure_persistence = None;
    config
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn each_call_fails_or_advances_and_each_datagram_is_accounted_for(
        shape in vec((1..100_usize, 0..20_usize, 0..PEERS), 0..12),
        script in vec((events(), replies()), 1..60),
        guarded in any::<bool>(),
    ) {
        let count: usize = shape.iter().map(|(count, ..)| count).sum();
        // Each datagram, even an empty one, has a distinct address in memory.
        let memory = vec![0_u8; count * 21 + 1];
        let (mut queue, mut starts, mut at) = (SendQueue::default(), Vec::new(), 0);
        for &(count, len, port) in &shape {
            for _ in 0..count {
                let payload = &memory[at..at + len];
                let to = SocketAddr::from(([127, 0, 0, 1], port)).into();
                queue.push(SendSlice::new(payload), Some(&to), None).unwrap();
                starts.push((payload.as_ptr().addr(), len, port));
                at += len.max(1);
            }
        }
        let gso = Gso::new(true);
        let mut kernel = Scripted {
            reply: Reply::Takes(0),
            is_corked: false,
            taken: HashMap::new(),
            bytes: [0; PEERS as usize],
            calls: 0,
            offered: 0,
        };
        let mut guard = guarded.then(|| Rc::new(Account::default()));
        let (mut given_up, mut guards) = (Vec::new(), Vec::from_iter(guard.clone()));
        let mut unguarded_bytes = 0;
        let mut skipped_in_doubt = 0;
        for (event, reply) in script {
            match event {
                PriorEvent::Nothing => {}
                PriorEvent::Corked(is_corked) => kernel.is_corked = is_corked,
                PriorEvent::Earn(peer, bytes) => {
                    if let Some(guard) = &guard {
                        guard.may.borrow_mut()[usize::from(peer)] += bytes;
                    }
                }
                PriorEvent::Guard(may) => {
                    guard = may.map(|may| Rc::new(Account { may: may.into(), ..Account::default() }));
                    guards.extend(guard.clone());
                }
            }
            let empty = queue.is_empty();
            let (before, bytes_before) = (queue.position(), kernel.bytes);
            let refused = matches!(reply, Reply::Fails(_));
            (kernel.reply, kernel.calls) = (reply, 0);
            let asked = guard.as_ref().map_or(0, |guard| guard.asked.get());
            let result = queue.send_by(&mut kernel, &gso, gso.known_limits(), guard.as_deref());
            // Bounded: the run, the run again after EMSGSIZE, and its datagrams alone. The budget is
            // asked for the datagrams that a call takes, and for the one after them that it does not
            // allow.
            prop_assert!(kernel.calls <= 3);
            if let Some(guard) = &guard && kernel.calls == 1 {
                prop_assert!(guard.asked.get() - asked <= kernel.offered + 1);
            }
            match result {
                Ok(sent) => {
                    prop_assert!(!empty && !refused);
                    prop_assert_eq!(queue.position(), before + sent.datagrams.get());
                    let bytes: usize = starts[before..queue.position()].iter().map(|s| s.1).sum();
                    prop_assert_eq!(sent.bytes, bytes);
                }
                Err(error) => {
                    prop_assert_eq!(queue.position(), before);
                    prop_assert_eq!(kernel.bytes, bytes_before);
                    if !empty && !matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) {
                        let skipped = queue.skip();
                        prop_assert!((1..=LONGEST_RUN).contains(&skipped));
                        prop_assert_eq!(queue.position(), before + skipped);
                        skipped_in_doubt += skipped - 1;
                        given_up.extend(before..before + skipped);
                    }
                }
            }
            if guard.is_none() {
                unguarded_bytes += kernel.bytes.iter().sum::<usize>()
                    - bytes_before.iter().sum::<usize>();
            }
        }
        prop_assert!(skipped_in_doubt <= given_up.len());
        // Each finished datagram was either sent once, or dropped and not sent.
        for (index, (start, _, _)) in starts.iter().enumerate() {
            let left = kernel.taken.get(start).copied().unwrap_or(0);
            let done = index < queue.position() && !given_up.contains(&index);
            prop_assert_eq!(left, usize::from(done), "datagram {}", index);
        }
        // Exactly the sent datagrams were paid for, each by the guard of its call.
        let paid: usize = guards.iter().map(|guard| guard.taken.borrow().iter().sum::<usize>()).sum();
        prop_assert_eq!(paid + unguarded_bytes, kernel.bytes.iter().sum::<usize>());
    }
}
