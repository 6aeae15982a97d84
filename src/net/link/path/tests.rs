use std::time::Duration;

use super::*;
use crate::net::link::impairments::Loss;

const MS: u64 = 1_000_000;

fn path(change: impl FnOnce(&mut Impairments)) -> LinkPath {
    let mut impairments = Impairments::default();
    change(&mut impairments);
    let mut path = LinkPath::new(1, 1000);
    path.set(impairments);
    path
}

fn accept(path: &mut LinkPath, now: u64, payload: &[u8]) {
    path.accept(now, 0, payload.to_vec(), 28, None);
}

/// The payloads that are due.
fn due(path: &mut LinkPath, now: u64) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| path.pop_due(now)).map(|departure| departure.payload).collect()
}

fn is_balanced(path: &LinkPath) -> bool {
    let counts = path.counts();
    let under_way = (path.schedule.len() + path.held.len()) as u64;
    let bytes: usize = path.schedule.iter().map(|it| it.0.departure.bytes()).sum();
    let held: usize = path.held.iter().map(|(_, it)| it.departure.bytes()).sum();
    counts.queued() == under_way && bytes + held == path.bytes
}

#[test]
fn without_impairments_datagrams_leave_at_once_in_order() {
    let mut path = path(|_| ());
    for payload in [&b"one"[..], b"", b"three"] {
        accept(&mut path, 5, payload);
    }
    assert_eq!(path.next_due(), Some(5));
    assert_eq!(due(&mut path, 4), Vec::<Vec<u8>>::new());
    assert_eq!(due(&mut path, 5), [&b"one"[..], b"", b"three"]);
    assert_eq!((path.counts().sent, path.counts().sent_bytes, path.next_due()), (3, 8, None));
}

#[test]
fn a_delay_is_exact_and_jitter_stays_within_its_bounds() {
    let mut exact = path(|it| it.delay = Duration::from_millis(40));
    accept(&mut exact, MS, b"x");
    assert_eq!(exact.next_due(), Some(41 * MS));
    let mut varied = path(|it| {
        (it.delay, it.jitter) = (Duration::from_millis(5), Duration::from_millis(20));
    });
    let mut seen = Vec::new();
    for _ in 0..200 {
        accept(&mut varied, 0, b"x");
        seen.push(varied.records().last().unwrap().delay);
        assert_eq!(due(&mut varied, 25 * MS).len(), 1);
    }
    // A negative delay is none.
    assert!(seen.contains(&0) && seen.iter().max().unwrap() > &(20 * MS));
}

#[test]
fn a_reordered_datagram_is_overtaken_by_the_next_one_of_its_flow() {
    let mut path = path(|it| it.delay = Duration::from_millis(1));
    let reorder = Some("reorder".parse::<Verdict>().unwrap());
    path.accept(0, 0, b"first".to_vec(), 28, reorder.clone());
    path.accept(0, 0, b"second".to_vec(), 28, reorder);
    path.accept(0, 9, b"other".to_vec(), 28, None);
    assert_eq!(due(&mut path, MS), [b"other"]);
    path.accept(2 * MS, 0, b"third".to_vec(), 28, None);
    assert_eq!(due(&mut path, 3 * MS), [&b"third"[..], b"first", b"second"]);
    assert!(is_balanced(&path));
}

#[test]
fn a_reordered_datagram_does_not_wait_for_ever() {
    let mut path = path(|it| it.reorder = 1.0);
    accept(&mut path, 3, b"x");
    assert_eq!(path.next_due(), Some(3 + LONGEST_HOLD));
    assert!(due(&mut path, 2 + LONGEST_HOLD).is_empty());
    assert_eq!(due(&mut path, 3 + LONGEST_HOLD), [b"x"]);
    assert_eq!(path.counts().reordered, 1);
}

#[test]
fn a_rate_spaces_datagrams_and_its_queue_is_bounded() {
    // 1,000 bytes take a millisecond.
    let mut path = path(|it| (it.rate, it.queue) = (Some(8e6), Some(2)));
    for number in 0..5 {
        accept(&mut path, 0, &[number; 1000]);
    }
    assert_eq!(path.counts().dropped[DropReason::QueueFull as usize], 2);
    for number in 0..3 {
        assert_eq!(path.next_due(), Some((u64::from(number) + 1) * MS));
        assert_eq!(due(&mut path, (u64::from(number) + 1) * MS), [[number; 1000]]);
    }
    accept(&mut path, 10 * MS, &[7; 500]);
    assert_eq!(path.next_due(), Some(10 * MS + MS / 2));
    let dropped: Vec<_> = path.records().map(|record| record.dropped).collect();
    let full = Some(DropReason::QueueFull);
    assert_eq!(dropped, [None, None, None, full, full, None]);
}

#[test]
fn the_mtu_counts_headers() {
    let mut path = path(|it| it.mtu = Some(1280));
    path.accept(0, 0, vec![0; 1252], 28, None);
    path.accept(0, 0, vec![0; 1253], 28, None);
    path.accept(0, 1, vec![0; 1233], 48, None);
    assert_eq!((due(&mut path, 0).len(), path.counts().dropped), (1, [0, 0, 0, 0, 2, 0, 0]));
}

#[test]
fn a_verdict_replaces_what_would_be_drawn() {
    let mut path = path(|it| it.loss = Loss::Independent(1.0));
    let script = ["pass", "default", "duplicate, delay 2ms", "truncate 2", "drop", "default"];
    for (number, step) in script.into_iter().enumerate() {
        path.accept(0, 0, number.to_string().repeat(4).into_bytes(), 28, step.parse().ok());
    }
    assert_eq!(due(&mut path, 0), [&b"0000"[..], b"33"]);
    assert_eq!(due(&mut path, 2 * MS), [b"2222", b"2222"]);
    let counts = path.counts();
    assert_eq!((counts.duplicated, counts.truncated, counts.sent), (1, 1, 4));
    let dropped = |reason| counts.dropped[reason as usize];
    assert_eq!((dropped(DropReason::Lost), dropped(DropReason::Scripted)), (2, 1));
    assert!(is_balanced(&path));
}

#[test]
fn empty_datagrams_take_memory_too() {
    let mut path = path(|it| it.delay = Duration::from_secs(1));
    accept(&mut path, 0, b"");
    assert!(path.bytes >= size_of::<Scheduled>());
    path.bytes = MOST_BYTES;
    accept(&mut path, 0, b"");
    assert_eq!(path.counts().dropped[DropReason::QueueFull as usize], 1);
}

#[test]
fn a_corrupted_datagram_differs_in_the_logged_bit() {
    let mut path = path(|it| it.corrupt = 1.0);
    accept(&mut path, 0, &[0; 100]);
    let bit = path.records().next().unwrap().corrupted.unwrap();
    let arrived = &due(&mut path, 0)[0];
    assert_eq!(arrived.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
    assert_eq!(arrived[bit / 8], 1 << (bit % 8));
}

#[test]
fn a_cut_drops_what_is_under_way_and_what_arrives() {
    let mut path = path(|it| it.delay = Duration::from_millis(1));
    accept(&mut path, 0, b"under way");
    path.accept(0, 0, b"held".to_vec(), 28, "reorder, duplicate".parse().ok());
    path.cut();
    accept(&mut path, 0, b"arrives");
    assert!(path.is_cut() && due(&mut path, u64::MAX).is_empty());
    assert_eq!(path.counts().dropped[DropReason::Cut as usize], 4);
    assert!(path.records().all(|it| it.copies == 0 && it.dropped == Some(DropReason::Cut)));
    path.heal();
    accept(&mut path, 0, b"after");
    assert_eq!(due(&mut path, MS), [b"after"]);
    assert!(is_balanced(&path));
}

#[test]
fn a_datagram_that_was_not_sent_counts_as_dropped() {
    let mut path = path(|_| ());
    accept(&mut path, 0, b"x");
    let departure = path.pop_due(0).unwrap();
    path.was_not_sent(&departure);
    assert_eq!((path.counts().sent, path.counts().sent_bytes, path.counts().queued()), (0, 0, 0));
    assert_eq!(path.records().next().unwrap().dropped, Some(DropReason::Unsendable));
}

#[test]
fn one_seed_gives_one_log_however_flows_interleave() {
    let run = |flows: &[u32]| {
        let mut path = path(|it| {
            (it.loss, it.duplicate, it.reorder) = (Loss::Independent(0.2), 0.2, 0.2);
            (it.corrupt, it.truncate, it.jitter) = (0.2, 0.2, Duration::from_millis(3));
        });
        for (number, &flow) in flows.iter().enumerate() {
            path.accept(number as u64, flow, vec![0; 50], 28, None);
        }
        let mut records: Vec<_> = path.records().cloned().collect();
        for record in &mut records {
            record.at = 0;
        }
        records.sort_by_key(|record| (record.flow, record.index));
        records
    };
    let mut flows: Vec<_> = (0..300).map(|number| number % 3).collect();
    let alternating = run(&flows);
    flows.sort_unstable();
    assert_eq!(run(&flows), alternating);
}

#[test]
fn everything_is_accounted_for_at_any_time() {
    let mut path = path(|it| {
        (it.loss, it.duplicate, it.reorder) = (Loss::Independent(0.1), 0.3, 0.3);
        (it.delay, it.jitter) = (Duration::from_millis(2), Duration::from_millis(2));
        (it.rate, it.queue, it.mtu) = (Some(1e6), Some(5), Some(200));
    });
    let mut draws = crate::net::link::draws::Draws::new(9, 0, 0);
    let mut arrived = 0;
    for now in (0..2000).map(|step| step * MS / 4) {
        if draws.chance(0.7) {
            let len = draws.below(250) as usize;
            path.accept(now, draws.below(3) as u32, vec![0; len], 28, None);
        }
        if draws.chance(0.5) {
            arrived += due(&mut path, now).len();
        }
        if draws.chance(0.01) {
            path.cut();
            path.heal();
        }
        assert!(is_balanced(&path));
    }
    arrived += due(&mut path, u64::MAX).len();
    let counts = path.counts();
    assert_eq!((counts.sent, counts.queued()), (arrived as u64, 0));
    assert!(counts.dropped[..5].iter().enumerate().all(|(at, &n)| at == 1 || n > 0), "{counts:?}");
}
