//! Records that anyone can forge, with every cipher: they end nothing.

use super::*;

/// One of each kind, with every length that its shortest record may have.
const CIPHERS: [&str; 10] = [
    "PSK-AES128-GCM-SHA256",
    "PSK-AES256-CCM",
    "PSK-AES128-CCM8",
    "PSK-CHACHA20-POLY1305",
    "PSK-AES128-CBC-SHA",
    "PSK-AES128-CBC-SHA256",
    "PSK-AES256-CBC-SHA384",
    "PSK-NULL-SHA",
    "PSK-NULL-SHA256",
    "PSK-NULL-SHA384",
];
const VERSIONS: [[u8; 2]; 3] = [[254, 253], [254, 255], [254, 252]];
const KINDS: std::ops::RangeInclusive<u8> = 20..=24;
/// Longer than the shortest record of any cipher.
const LENGTHS: std::ops::Range<u16> = 0..100;

fn network(cipher: &str) -> Network {
    let (mut net, ciphers) = (Network::new(), format!("{cipher}:@SECLEVEL=0"));
    let context = context(Role::Server, b"secret");
    context.change(|settings| settings.set_ciphers(&ciphers)).unwrap();
    net.ciphers = Some(ciphers);
    net.server = Endpoint::new(context, EndpointOptions::default()).unwrap();
    net
}

/// Makes encrypted records of every length, each with a number that none had before.
fn forged() -> impl Iterator<Item = Vec<u8>> {
    LENGTHS.flat_map(|len| {
        VERSIONS.into_iter().flat_map(move |version| {
            KINDS.map(move |kind| {
                let number = [0, kind, version[1], len as u8, 0, 0];
                let mut record = vec![kind, version[0], version[1], 0, 1];
                record.extend(number);
                record.extend(len.to_be_bytes());
                record.extend(vec![kind; usize::from(len)]);
                record
            })
        })
    })
}

/// A record that OpenSSL takes for a header only, because of its version or length.
fn in_disguise(record: &[u8]) -> [Vec<u8>; 3] {
    let header = |version: u8, len: u16| {
        let [high, low] = len.to_be_bytes();
        [22, 254, version, 0, 0, 0, 0, 0, 0, 0, 9, high, low]
    };
    let len = u16::try_from(record.len()).unwrap();
    [header(255, len), header(252, len), header(253, u16::MAX)]
        .map(|header| [&header[..], record].concat())
}

#[test]
fn a_forged_record_of_any_length_ends_no_session() {
    for cipher in CIPHERS {
        let (mut net, server) = (network(cipher), address(SERVER));
        let client = net.connect("198.51.100.1:1000");
        for record in forged() {
            for (from, to) in [(client, server), (server, client)] {
                let true_one = net.seal(from, to, b"true").unwrap();
                net.deliver(from, to, &record);
                for hidden in in_disguise(&record) {
                    net.deliver(from, to, &hidden);
                }
                net.deliver(from, to, &[&true_one[..], &record].concat());
                assert_eq!(
                    net.take_received(),
                    [(from, b"true".to_vec())],
                    "{cipher}, {record:x?}"
                );
            }
        }
        assert!(net.wire.is_empty(), "{cipher}: forged records are answered");
        assert_eq!(net.server.sessions(), (1, 0));
    }
}

#[test]
fn the_shortest_true_records_are_read() {
    for cipher in CIPHERS {
        let (mut net, server) = (network(cipher), address(SERVER));
        let client = net.connect("198.51.100.1:1000");
        for (from, to, text) in [(client, server, b"x"), (server, client, b"y")] {
            let record = net.seal(from, to, text).unwrap();
            net.deliver(from, to, &record);
        }
        assert_eq!(net.take_received(), [(client, b"x".to_vec()), (server, b"y".to_vec())]);
        let mut outbox = Outbox::default();
        assert!(net.server.close(Some(&client), &mut outbox));
        net.post(server, &outbox);
        net.run();
        assert!(matches!(net.clients[&client].status(), Status::Ended(_)), "{cipher}");
    }
}
