use super::*;
use crate::net::gso::LARGEST_RUN;
use std::net::SocketAddr;

/// A kernel that responds as a function says.
struct Answer<F>(F);

impl<F: FnMut(&mut dyn Iterator<Item = Outgoing<'_>>) -> io::Result<usize>> Kernel for Answer<F> {
    fn send(&mut self, messages: &mut dyn Iterator<Item = Outgoing<'_>>) -> io::Result<usize> {
        (self.0)(messages)
    }

    fn is_corked(&mut self) -> bool {
        false
    }
}

/// A budget without a limit.
struct Unlimited;

impl Budget for Unlimited {
    fn take(&self, _: Option<&Address>, _: usize) -> bool {
        true
    }

    fn give_back(&self, _: Option<&Address>, _: usize) {}

    fn refusal(&self) -> io::Error {
        unreachable!("it refuses nothing")
    }
}

fn send_with(
    queue: &mut SendQueue<'_>,
    gso: &Gso,
    transmit: impl FnMut(&mut dyn Iterator<Item = Outgoing<'_>>) -> io::Result<usize>,
) -> io::Result<Sent> {
    queue.send_by(&mut Answer(transmit), gso, gso.known_limits(), None::<&Unlimited>)
}

/// The longest datagram that a run to a peer may contain.
fn longest(gso: &Gso, port: u16) -> usize {
    gso.known_limits().longest(Some(&peer(port)))
}

fn peer(port: u16) -> Address {
    SocketAddr::from(([127, 0, 0, 1], port)).into()
}

/// A refused datagram and its error.
struct Failure {
    index: usize,
    error: io::Error,
}

/// A message that the kernel has seen: its port, its segment size, and its length.
type Seen = (Option<u16>, Option<usize>, usize);

fn seen(message: &Outgoing<'_>) -> Seen {
    let segment = crate::net::cmsg::decode(message.control.as_bytes())
        .find(|control| control.level == libc::SOL_UDP)
        .map(|control| usize::from(u16::from_ne_bytes([control.data[0], control.data[1]])));
    let len = message.memory.iter().map(SendSlice::len).sum();
    (message.to.and_then(Address::ip).map(|ip| ip.port()), segment, len)
}

/// Sends everything through a kernel that responds as `answer` says; returns the messages it saw.
fn send_all(
    queue: &mut SendQueue<'_>,
    gso: &Gso,
    mut answer: impl FnMut(&[Seen]) -> io::Result<usize>,
) -> (Vec<Seen>, Vec<Failure>) {
    let (mut left, mut failures) = (Vec::new(), Vec::new());
    while !queue.is_empty() {
        let mut taken = Vec::new();
        let result = send_with(queue, gso, |messages| {
            let messages: Vec<_> = messages.map(|message| seen(&message)).collect();
            let count = answer(&messages)?;
            taken.extend_from_slice(&messages[..count]);
            Ok(count)
        });
        left.extend(taken);
        if let Err(error) = result {
            failures.push(Failure { index: queue.position(), error });
            queue.skip();
        }
    }
    (left, failures)
}

fn queue<'a>(payloads: &[(&'a [u8], u16)]) -> SendQueue<'a> {
    let mut queue = SendQueue::with_room(payloads.len()).unwrap();
    for (payload, port) in payloads {
        queue.push(SendSlice::new(payload), Some(&peer(*port)), None).unwrap();
    }
    queue
}

#[allow(clippy::unnecessary_wraps)] // it replaces a kernel call that may fail
fn all(messages: &[Seen]) -> io::Result<usize> {
    Ok(messages.len())
}

fn errno(errno: c_int) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

#[test]
fn one_datagram_forgets_its_source_and_the_following_ones_do_not() {
    let source = Source { address: [127, 0, 0, 1].into(), interface: 0 };
    let mut queue = SendQueue::default();
    for port in [1, 2] {
        queue.push(SendSlice::new(b"x"), Some(&peer(port)), Some(source)).unwrap();
    }
    assert!(queue.forget_source() && !queue.forget_source());
    let mut have_sources = Vec::new();
    let sent = send_with(&mut queue, &Gso::new(true), |messages| {
        have_sources = messages.map(|message| !message.control.as_bytes().is_empty()).collect();
        Ok(have_sources.len())
    });
    assert_eq!((sent.unwrap().datagrams.get(), have_sources), (2, vec![false, true]));
    assert!(!queue.forget_source());
}

#[test]
fn datagrams_pushed_together_go_to_one_peer() {
    let mut queue = SendQueue::with_room(0).unwrap();
    for port in [1, 2] {
        let payloads = [SendSlice::new(b"first"), SendSlice::new(b"next")];
        queue.push_all(payloads.into_iter(), Some(&peer(port)), None).unwrap();
    }
    let (left, _) = send_all(&mut queue, &Gso::new(true), all);
    assert_eq!(left, [(Some(1), Some(5), 9), (Some(2), Some(5), 9)]);
}

#[test]
fn equal_sizes_to_one_peer_are_one_run_and_the_last_may_be_shorter() {
    let (long, short) = ([0; 100], [0; 60]);
    let mut queue = queue(&[
        (&long, 1),
        (&long, 1),
        (&short, 1), // ends the run
        (&short, 1),
        (&long, 1), // longer: starts a new run
        (&long, 2), // another peer
        (&[], 2),   // an empty datagram cannot be in a run
        (&[], 2),
    ]);
    let (left, failures) = send_all(&mut queue, &Gso::new(true), all);
    let expected = [
        (Some(1), Some(100), 260),
        (Some(1), None, 60),
        (Some(1), None, 100),
        (Some(2), None, 100),
        (Some(2), None, 0),
        (Some(2), None, 0),
    ];
    assert_eq!(left, expected);
    assert!(failures.is_empty());
}

#[test]
fn runs_keep_the_kernels_limits() {
    let small = [0; 10];
    let mut queue1 = queue(&[(&small[..], 1); 130]);
    let (left, _) = send_all(&mut queue1, &Gso::new(true), all);
    assert_eq!(left.iter().map(|seen| seen.2).collect::<Vec<_>>(), [640, 640, 20]);
    let large = vec![0; 30_000];
    let mut queue2 = queue(&[(&large[..], 1); 3]);
    let (left, _) = send_all(&mut queue2, &Gso::new(true), all);
    assert_eq!(left.iter().map(|seen| seen.2).collect::<Vec<_>>(), [60_000, 30_000]);
}

#[test]
fn a_call_takes_a_bounded_number_of_messages() {
    let ports: Vec<_> = (1..=150).map(|port| (&b"x"[..], port)).collect();
    let mut calls = Vec::new();
    let (left, _) = send_all(&mut queue(&ports), &Gso::new(true), |messages| {
        calls.push(messages.len());
        Ok(messages.len())
    });
    assert_eq!(calls, [64, 64, 22]);
    assert!(left.iter().map(|seen| seen.0).eq((1..=150).map(Some)));
}

#[test]
fn a_partial_send_continues_where_it_stopped() {
    let mut payloads = vec![(&b"aa"[..], 1); 3];
    payloads.extend([(&b"b"[..], 2), (&b"c"[..], 3)]);
    let mut queue = queue(&payloads);
    let (left, _) = send_all(&mut queue, &Gso::new(true), |_| Ok(1));
    let expected = [(Some(1), Some(2), 6), (Some(2), None, 1), (Some(3), None, 1)];
    assert_eq!(left, expected);
}

#[test]
fn a_refused_run_is_sent_one_by_one_and_offload_is_given_up() {
    let gso = Gso::new(true);
    let mut payloads = vec![(&b"xxxx"[..], 1); 3];
    payloads.extend([(&b"yyyy"[..], 2); 2]);
    let mut queue = queue(&payloads);
    let refuse = |messages: &[Seen]| match messages[0].1 {
        Some(_) => Err(errno(libc::EIO)),
        // The kernel stops before the next run, which it will refuse.
        None => Ok(messages.iter().take_while(|seen| seen.1.is_none()).count()),
    };
    let (left, failures) = send_all(&mut queue, &gso, refuse);
    assert!(failures.is_empty());
    assert_eq!(left, [[(Some(1), None, 4); 3].as_slice(), &[(Some(2), None, 4); 2]].concat());
    assert_eq!(longest(&gso, 1), 0);
}

#[test]
fn a_size_beyond_the_mtu_does_not_disable_offload_for_shorter_runs() {
    let gso = Gso::new(true);
    let long = vec![0; 2000];
    let mut payloads = vec![(&long[..], 1); 2];
    payloads.extend([(&long[..1000], 1); 3]); // the first of them ends the refused run
    let mtu = |messages: &[Seen]| match messages[0].1 {
        Some(segment) if segment > 1472 => Err(errno(libc::EINVAL)),
        _ => Ok(1),
    };
    let (left, failures) = send_all(&mut queue(&payloads), &gso, mtu);
    assert!(failures.is_empty());
    let expected = [
        (Some(1), None, 2000),
        (Some(1), None, 2000),
        (Some(1), None, 1000),
        (Some(1), Some(1000), 2000),
    ];
    assert_eq!(left, expected);
    assert_eq!(longest(&gso, 1), 1999);
}

#[test]
fn an_error_about_a_datagram_does_not_disable_offload() {
    let gso = Gso::new(true);
    let mut queue = queue(&[(b"xx", 1), (b"xx", 1), (b"ok", 2)]);
    let unreachable = |messages: &[Seen]| match messages[0].0 {
        Some(1) => Err(errno(libc::EINVAL)), // as for port 0, in a run or alone
        _ => Ok(1),
    };
    let (left, failures) = send_all(&mut queue, &gso, unreachable);
    assert_eq!(left, [(Some(2), None, 2)]);
    let failures: Vec<_> =
        failures.iter().map(|failure| (failure.index, failure.error.raw_os_error())).collect();
    assert_eq!(failures, [(0, Some(libc::EINVAL)), (1, Some(libc::EINVAL))]);
    assert_eq!(longest(&gso, 1), LARGEST_RUN);
}

#[test]
fn without_offload_every_datagram_is_sent_alone() {
    let (left, _) = send_all(&mut queue(&[(&b"x"[..], 1); 3]), &Gso::new(false), all);
    assert_eq!(left, [(Some(1), None, 1); 3]);
}

#[test]
fn adjacent_payloads_are_one_slice() {
    let memory = [7; 40];
    let mut queue = SendQueue::default();
    for chunk in memory.chunks(10) {
        queue.push(SendSlice::new(chunk), None, None).unwrap();
    }
    let pieces = send_with(&mut queue, &Gso::new(true), |messages| {
        let message = messages.next().unwrap();
        assert_eq!(seen(&message), (None, Some(10), 40));
        Ok(message.memory.len())
    });
    assert_eq!(pieces.unwrap().datagrams.get(), 4); // one piece, one message
    assert!(queue.is_empty());
}

#[test]
fn a_source_goes_with_every_message_and_ends_a_run() {
    let source = |last| Source { address: [127, 0, 0, last].into(), interface: 0 };
    let mut queue = SendQueue::default();
    for last in [1, 1, 2] {
        queue.push(SendSlice::new(b"x"), Some(&peer(9)), Some(source(last))).unwrap();
    }
    let mut sources = Vec::new();
    let sent = send_with(&mut queue, &Gso::new(true), |messages| {
        sources.extend(messages.map(|message| {
            let control = crate::net::cmsg::decode(message.control.as_bytes())
                .find(|control| control.level == libc::IPPROTO_IP)
                .unwrap();
            control.data[7]
        }));
        Ok(sources.len())
    });
    let sent = sent.unwrap();
    assert_eq!((sent.datagrams.get(), sent.bytes), (3, 3));
    assert_eq!(sources, [1, 2]);
}

#[test]
fn a_run_ends_where_the_metadata_differs() {
    let meta = |tos| SendMeta { is_ipv4: true, tos, ..SendMeta::default() };
    let mut queue = SendQueue::default();
    let metas = [Some(meta(Some(1))), Some(meta(Some(1))), Some(meta(Some(2))), None, None];
    for meta in metas {
        queue.push_all(iter::once(SendSlice::new(b"x")), Some(&peer(9)), meta).unwrap();
    }
    let mut runs = Vec::new();
    let sent = send_with(&mut queue, &Gso::new(true), |messages| {
        runs.extend(messages.map(|message| {
            let controls = crate::net::cmsg::decode(message.control.as_bytes());
            let kinds = controls.map(|control| (control.level, control.data[0]));
            (seen(&message).2, kinds.collect::<Vec<_>>())
        }));
        Ok(runs.len())
    });
    assert_eq!(sent.unwrap().datagrams.get(), 5);
    let (tos, run) = (|tos| (libc::IPPROTO_IP, tos), (libc::SOL_UDP, 1));
    assert_eq!(runs, [(2, vec![tos(1), run]), (1, vec![tos(2)]), (2, vec![run])]);
}

#[test]
fn a_corked_socket_sends_no_runs_and_is_queried_only_before_a_possible_run() {
    struct Corked(usize, Vec<Seen>);
    impl Kernel for Corked {
        fn send(&mut self, messages: &mut dyn Iterator<Item = Outgoing<'_>>) -> io::Result<usize> {
            self.1 = messages.map(|message| seen(&message)).collect();
            Ok(self.1.len())
        }

        fn is_corked(&mut self) -> bool {
            self.0 += 1;
            true
        }
    }
    let send = |payloads: &[(&'static [u8], u16)]| {
        let (gso, mut kernel) = (Gso::new(true), Corked(0, Vec::new()));
        let mut queue = queue(payloads);
        queue.send_by(&mut kernel, &gso, gso.known_limits(), None::<&Unlimited>).unwrap();
        (kernel.0, kernel.1)
    };
    let alone = |port| (Some(port), None, 1);
    assert_eq!(send(&[(&b"a"[..], 1); 3]), (1, vec![alone(1); 3]));
    assert_eq!(send(&[(&b"a"[..], 1), (&b"a"[..], 2)]), (0, vec![alone(1), alone(2)]));
}

#[test]
fn a_run_that_may_have_left_in_part_is_given_up_as_a_whole() {
    for errno_of_run in [libc::ENOBUFS, libc::ENOMEM] {
        let gso = Gso::new(true);
        let mut queue = queue(&[(b"xx", 1), (b"xx", 1), (b"x", 1), (b"ok", 2)]);
        let error = send_with(&mut queue, &gso, |_| Err(errno(errno_of_run))).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(errno_of_run));
        assert_eq!((queue.position(), queue.skip(), queue.position()), (0, 3, 3));
        // The next error is about one datagram.
        send_with(&mut queue, &gso, |_| Err(errno(errno_of_run))).unwrap_err();
        assert_eq!((queue.skip(), queue.len()), (1, 0));
    }
}

#[test]
fn a_kernel_that_takes_nothing_is_an_error() {
    let mut queue = queue(&[(b"x", 1)]);
    let error = send_with(&mut queue, &Gso::new(true), |_| Ok(0)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    queue.skip();
    let error = send_with(&mut queue, &Gso::new(true), |_| Ok(1)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL)); // nothing to send
}

#[test]
fn an_icmp_error_about_another_datagram_does_not_disable_offload() {
    let gso = Gso::new(true);
    let payload = [0; 100];
    let mut queue = queue(&[(&payload, 1), (&payload, 1), (&payload, 1)]);
    let mut calls = 0;
    let (left, failures) = send_all(&mut queue, &gso, |messages| {
        calls += 1;
        if calls == 1 { Err(errno(libc::EMSGSIZE)) } else { Ok(messages.len()) }
    });
    assert_eq!(left, [(Some(1), Some(100), 300)]);
    assert!(failures.is_empty());
    assert_eq!(longest(&gso, 1), LARGEST_RUN);
}
