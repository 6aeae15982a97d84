use super::*;
use std::net::UdpSocket;
use std::os::fd::IntoRawFd;

fn pair() -> (Socket, UdpSocket) {
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    // SAFETY: the descriptor was just given up.
    let receiver = unsafe { Socket::adopt(receiver.into_raw_fd(), None, None, None) };
    (receiver.unwrap(), sender)
}

fn receive(fd: BorrowedFd<'_>, _hung_up: bool) -> io::Result<usize> {
    let mut buffer = [0; 64];
    sys::recv_from(fd, &mut sys::RecvSlice::new(&mut buffer), None, libc::MSG_DONTWAIT)
}

#[test]
fn a_datagram_ends_the_wait() {
    let (receiver, sender) = pair();
    std::thread::scope(|scope| {
        let waiting = scope
            .spawn(|| Waiting::new(&receiver).run(Interest::Read, Deadline::NEVER, None, receive));
        sender.send(b"seven..").unwrap();
        assert_eq!(waiting.join().unwrap().unwrap(), 7);
    });
}

#[test]
fn the_deadline_ends_the_wait_asleep_and_awake() {
    let (receiver, _sender) = pair();
    let timeout = Duration::from_millis(5);
    for spin in [None, Some(Instant::now() + Duration::from_secs(60))] {
        let started = Instant::now();
        let deadline = Deadline::after(timeout);
        let result = Waiting::new(&receiver).run(Interest::Read, deadline, spin, receive);
        assert!(matches!(result, Err(Stop::TimedOut)), "{result:?}");
        assert!(started.elapsed() >= timeout);
    }
}

#[test]
fn spinning_gives_signal_handlers_a_turn_and_ends_by_itself() {
    let (receiver, _sender) = pair();
    let long = Some(Instant::now() + Duration::from_secs(60));
    let result = Waiting::new(&receiver).run(Interest::Read, Deadline::NEVER, long, receive);
    let Err(Stop::Failed(error)) = result else { panic!("{result:?}") };
    assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    let past = Some(Instant::now());
    let deadline = Deadline::after(Duration::from_millis(5));
    let result = Waiting::new(&receiver).run(Interest::Read, deadline, past, receive);
    assert!(matches!(result, Err(Stop::TimedOut)), "{result:?}");
}

#[test]
fn a_close_wakes_every_waiter() {
    let (receiver, _sender) = pair();
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    Waiting::new(&receiver).run(Interest::Read, Deadline::NEVER, None, receive)
                })
            })
            .collect();
        while receiver.descriptor().waiters() < 3 {
            std::thread::yield_now();
        }
        receiver.descriptor().close().unwrap();
        for waiter in waiters {
            assert!(matches!(waiter.join().unwrap(), Err(Stop::Closed)));
        }
    });
}

#[test]
fn a_wake_up_without_the_flag_ends_only_one_sleep() {
    let (receiver, _sender) = pair();
    let waiting = Waiting::new(&receiver);
    // The state after two wakes, if the second one writes after the first was cleared.
    waiting.waker.as_ref().unwrap().signal_without_flag();
    let mut attempts = 0;
    let deadline = Deadline::after(Duration::from_millis(20));
    let result = waiting.run(Interest::Read, deadline, None, |fd, hung_up| {
        attempts += 1;
        receive(fd, hung_up)
    });
    assert!(matches!(result, Err(Stop::TimedOut)), "{result:?}");
    assert_eq!(attempts, 1);
}

#[test]
fn a_wake_up_causes_another_attempt() {
    let (receiver, _sender) = pair();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            Waiting::new(&receiver).run(Interest::Read, Deadline::NEVER, None, |fd, hung_up| {
                let over = is_over.load(Ordering::Relaxed);
                if over { Ok(0) } else { receive(fd, hung_up) }
            })
        });
        while receiver.descriptor().waiters() < 1 {
            std::thread::yield_now();
        }
        is_over.store(true, Ordering::Relaxed);
        receiver.descriptor().wake();
        assert_eq!(waiting.join().unwrap().unwrap(), 0);
    });
}

#[test]
fn a_byte_of_a_signal_handler_interrupts_even_before_the_wait() {
    let (receiver, _sender) = pair();
    let (reader, mut writer) = std::os::unix::net::UnixStream::pair().unwrap();
    reader.set_nonblocking(true).unwrap();
    std::io::Write::write_all(&mut writer, b"ab").unwrap();
    // SAFETY: it is open until the end.
    let waiting = unsafe { Waiting::new(&receiver).signalled_by(reader.as_raw_fd()) };
    let result = waiting.run(Interest::Read, Deadline::NEVER, None, receive);
    let Err(Stop::Failed(error)) = result else { panic!("{result:?}") };
    assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    let deadline = Deadline::after(Duration::from_millis(5));
    let result = waiting.run(Interest::Read, deadline, None, receive);
    assert!(matches!(result, Err(Stop::TimedOut)), "{result:?}");
}

#[test]
fn error_queue_entries_neither_burn_the_core_nor_get_lost() {
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (waiter, _sender) = pair();
    waiter.set_int_option(libc::IPPROTO_IP, libc::IP_RECVERR, 1).unwrap();
    let waiting = Waiting::new(&waiter);
    let fd = waiter.descriptor().enter().unwrap();
    let payload = crate::net::SendSlice::new(b"to nobody");
    waiter.send(fd.as_fd(), payload, Some(&nobody.into()), 0).unwrap();
    let deadline = Deadline::after(Duration::from_millis(50));
    let refused = waiting.run(Interest::Read, Deadline::NEVER, None, receive);
    let Err(Stop::Failed(error)) = refused else { panic!("{refused:?}") };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    let mut attempts = 0;
    let result = waiting.run(Interest::Read, deadline, None, |fd, hung_up| {
        attempts += 1;
        receive(fd, hung_up)
    });
    assert!(matches!(result, Err(Stop::TimedOut)), "{result:?}");
    assert!(attempts < 10, "{attempts} attempts in 50 ms");
    let entry = waiter.take_error_message(fd.as_fd()).unwrap();
    assert_eq!(entry.peer.ip(), Some(nobody));
    assert_eq!(entry.decode().unwrap().errno, libc::ECONNREFUSED);
}

/// A socket with `IP_RECVERR`, and a function that makes an entry in its error queue.
fn with_errors() -> (Socket, impl Fn(BorrowedFd<'_>)) {
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (waiter, _sender) = pair();
    waiter.set_int_option(libc::IPPROTO_IP, libc::IP_RECVERR, 1).unwrap();
    let fail = move |fd: BorrowedFd<'_>| {
        // The error of an earlier datagram keeps one datagram from being sent.
        while sys::send_to(fd, sys::SendSlice::new(b"x"), Some(&nobody.into()), 0).is_err() {}
    };
    (waiter, fail)
}

#[test]
fn an_error_queue_that_fills_again_and_again_gives_signal_handlers_a_turn() {
    let (waiter, fail) = with_errors();
    fail(waiter.descriptor().enter().unwrap().as_fd());
    let deadline = Deadline::after(Duration::from_secs(10));
    let result = Waiting::new(&waiter).run(Interest::Read, deadline, None, |fd, _| {
        fail(fd);
        std::thread::sleep(2 * INSTANT); // as if it had taken many entries
        io::Result::<()>::Err(io::ErrorKind::WouldBlock.into())
    });
    let Err(Stop::Failed(error)) = result else { panic!("{result:?}") };
    assert_eq!(error.kind(), io::ErrorKind::Interrupted);
}

#[test]
fn a_wait_for_an_error_finds_one_that_another_thread_has_stored() {
    let (waiter, fail) = with_errors();
    let take = |fd: BorrowedFd<'_>, _| waiter.take_error_message(fd).map(drop);
    let deadline = Deadline::after(Duration::from_secs(10));
    let keep = |fd: BorrowedFd<'_>| {
        fail(fd);
        let (kept, _) = waiter.store_error_messages(fd);
        Ok(kept)
    };
    assert_eq!(waiter.with(keep).unwrap(), 1);
    Waiting::new(&waiter).run(Interest::Error, deadline, None, take).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            // It is too late for the entry each time, as if it had not looked in between.
            let mut attempts = 0;
            Waiting::new(&waiter).run(Interest::Error, deadline, None, |fd, hung_up| {
                attempts += 1;
                if attempts == 1 {
                    Err(io::ErrorKind::WouldBlock.into())
                } else {
                    take(fd, hung_up)
                }
            })
        });
        while waiter.descriptor().waiters() < 1 {
            std::thread::yield_now();
        }
        waiter.with(keep).unwrap();
        waiting.join().unwrap().unwrap();
    });
}

#[test]
fn a_sleep_after_spinning_gives_signal_handlers_a_turn() {
    let (receiver, _sender) = pair();
    let waiting = Waiting::new(&receiver);
    let spin = Instant::now() + Duration::from_millis(5);
    // The deadline of the first run comes while it spins; the second one does not spin.
    let soon = Deadline::after(Duration::from_millis(1));
    let result = waiting.run(Interest::Read, soon, Some(spin), receive);
    assert!(matches!(result, Err(Stop::TimedOut)), "{result:?}");
    let deadline = Deadline::after(Duration::from_secs(10));
    let result = waiting.run(Interest::Read, deadline, None, receive);
    let Err(Stop::Failed(error)) = result else { panic!("{result:?}") };
    assert_eq!(error.kind(), io::ErrorKind::Interrupted);
}

#[test]
fn false_readiness_does_not_burn_the_core() {
    // An unconnected AF_UNIX socket always polls writable; only the peer knows that it is full.
    let (receiver, sender) = pair();
    sender.send(b"x").unwrap();
    let mut attempts = 0;
    let deadline = Deadline::after(Duration::from_millis(50));
    let result = Waiting::new(&receiver).run(Interest::Read, deadline, None, |_, _| {
        attempts += 1;
        io::Result::<()>::Err(io::ErrorKind::WouldBlock.into())
    });
    assert!(matches!(result, Err(Stop::TimedOut)), "{result:?}");
    assert!(attempts < 100, "{attempts} attempts in 50 ms");
}

#[test]
fn false_readiness_gives_signal_handlers_a_turn() {
    // No sleep is interrupted here: as if each signal arrived between two of them.
    let (receiver, sender) = pair();
    sender.send(b"x").unwrap();
    let deadline = Deadline::after(Duration::from_secs(10));
    let result = Waiting::new(&receiver).run(Interest::Read, deadline, None, |_, _| {
        io::Result::<()>::Err(io::ErrorKind::WouldBlock.into())
    });
    let Err(Stop::Failed(error)) = result else { panic!("{result:?}") };
    assert_eq!(error.kind(), io::ErrorKind::Interrupted);
}

#[test]
fn a_window_lasts_without_a_waker() {
    let (receiver, sender) = pair();
    let window = NO_WAKER_SLICE * 3 / 2;
    receiver.set_coalesce(window);
    sender.send(b"seven..").unwrap();
    let mut waiting = Waiting::new(&receiver).collecting();
    let waker = waiting.waker.take();
    let started = Instant::now();
    let result = waiting.run(Interest::Read, Deadline::NEVER, None, receive);
    waiting.waker = waker; // to be unregistered
    assert_eq!(result.unwrap(), 7);
    assert!(started.elapsed() + sys::timer_slack() >= window);
}

#[test]
fn a_long_window_gives_signal_handlers_a_turn_and_goes_on() {
    let (receiver, sender) = pair();
    receiver.set_coalesce(LONGEST_DEAF * 600);
    sender.send(b"seven..").unwrap();
    let waiting = Waiting::new(&receiver).collecting();
    let started = Instant::now();
    let result = waiting.run(Interest::Read, Deadline::NEVER, None, receive);
    let Err(Stop::Failed(error)) = result else { panic!("{result:?}") };
    assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    let window = LONGEST_DEAF * 3 / 2;
    receiver.set_coalesce(window); // shortens the window that has begun
    let result = waiting.run(Interest::Read, Deadline::NEVER, None, receive);
    assert_eq!(result.unwrap(), 7);
    assert!(started.elapsed() + sys::timer_slack() >= window);
}

#[test]
fn a_deferred_error_ends_the_wait() {
    let (receiver, _sender) = pair();
    receiver.defer(&io::Error::from_raw_os_error(libc::ECONNREFUSED));
    let deadline = Deadline::after(Duration::from_secs(10));
    let result = Waiting::new(&receiver).run(Interest::Read, deadline, None, |fd, _| {
        receiver.receive(fd, &mut sys::RecvSlice::new(&mut [0; 64]), None, libc::MSG_DONTWAIT)
    });
    let Err(Stop::Failed(error)) = result else { panic!("{result:?}") };
    assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
}

#[cfg(feature = "dtls")]
#[test]
fn the_end_of_a_session_ends_the_wait() {
    use crate::net::dtls::{Context, Endpoint, EndpointOptions, OnEnd, Outbox, Role};
    let (receiver, sender) = pair();
    let options = EndpointOptions {
        peer: Some(sender.local_addr().unwrap().into()),
        server_name: Some("peer.example".to_owned()),
        on_end: OnEnd::Fail,
    };
    let endpoint = Arc::new(Endpoint::new(Arc::new(Context::new(Role::Client)), options).unwrap());
    endpoint.begin(&mut Outbox::default()).unwrap();
    receiver.set_dtls(Some(Arc::clone(&endpoint))).unwrap();
    // Nobody answers, and nothing arrives.
    endpoint.handle_timeouts(Instant::now() + Duration::from_secs(3600), &mut Outbox::default());
    let deadline = Deadline::after(Duration::from_secs(10));
    let attempt = |_: BorrowedFd<'_>, _| receiver.end_of_session();
    let result = Waiting::new(&receiver).run(Interest::Read, deadline, None, attempt);
    assert!(matches!(result, Err(Stop::Failed(_))), "{result:?}");
}
