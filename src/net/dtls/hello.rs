//! Parses a datagram of the first flight without OpenSSL: the header of its first record and, of a
//! `ClientHello`, the fields up to the cookie (RFC 6347, sections 4.1, 4.2.1 and 4.2.2).

/// A record's content type: an alert.
pub(super) const ALERT: u8 = 21;
/// A record's content type: a handshake message.
const HANDSHAKE: u8 = 22;
/// A record's content type: data of the application.
const APPLICATION_DATA: u8 = 23;
/// A handshake message's type: the client's first message.
const CLIENT_HELLO: u8 = 1;
/// A handshake message's type: the server's first message.
const SERVER_HELLO: u8 = 2;
/// A handshake message's type: the answer that carries a cookie.
const HELLO_VERIFY_REQUEST: u8 = 3;
/// The version in the header of a record of DTLS 1.2.
pub(super) const DTLS_1_2: [u8; 2] = [254, 253];
/// DTLS 1.0, which a `HelloVerifyRequest` names whatever version is negotiated later.
const DTLS_1_0: [u8; 2] = [254, 255];

/// The length of a record's header.
pub(super) const RECORD_HEADER: usize = 13;
const MESSAGE_HEADER: usize = 12;
const RANDOM: usize = 32;
/// The longest session identifier.
const LONGEST_SESSION_ID: usize = 32;

/// The length of a cookie.
pub(super) const COOKIE: usize = 32;
/// The length of a `HelloVerifyRequest`: shorter than anything that it answers, which ends after
/// the cookie at the earliest.
const VERIFY_REQUEST: usize = RECORD_HEADER + MESSAGE_HEADER + 3 + COOKIE;

/// A datagram, by the header of its first record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FirstRecord<'a> {
    /// The first fragment, or all, of a client's first message.
    ClientHello(ClientHello<'a>),
    /// Another record that is not encrypted.
    Plain,
    /// An encrypted record.
    Encrypted,
    /// Not DTLS.
    Invalid,
}

/// The fields of a `ClientHello` up to its cookie.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ClientHello<'a> {
    /// The record's epoch and sequence number, which the answer repeats.
    sequence: [u8; 8],
    message_sequence: [u8; 2],
    /// The fields that the cookie vouches for: version and random. The session identifier is not one
    /// of them: OpenSSL leaves it out of a client's second message if another session with the same
    /// identifier has failed meanwhile.
    pub(super) parameters: &'a [u8],
    /// Distinguishes this attempt of a client from others.
    pub(super) random: [u8; RANDOM],
    pub(super) cookie: &'a [u8],
}

impl<'a> FirstRecord<'a> {
    /// Parses a datagram.
    pub(super) fn parse(datagram: &'a [u8]) -> Self {
        Self::try_parse(datagram).unwrap_or(Self::Invalid)
    }

    fn try_parse(datagram: &'a [u8]) -> Option<Self> {
        let mut reader = Reader(datagram);
        let [kind, major, _minor] = reader.array()?;
        let sequence: [u8; 8] = reader.array()?;
        let mut record = Reader(reader.block16()?);
        // change_cipher_spec, alert, handshake, application_data, and heartbeat, which OpenSSL drops.
        if !(20..=24).contains(&kind) || major != DTLS_1_0[0] {
            return None;
        }
        if sequence[..2] != [0, 0] {
            return Some(Self::Encrypted);
        }
        if kind != HANDSHAKE || record.0.first() != Some(&CLIENT_HELLO) {
            return Some(Self::Plain);
        }
        let [_, _, _, _] = record.array()?; // the type, and the length of the whole message
        let message_sequence = record.array()?;
        let offset: [u8; 3] = record.array()?;
        let [_, high, low] = record.array()?;
        let mut body = Reader(record.take(usize::from(u16::from_be_bytes([high, low])))?);
        if offset != [0; 3] {
            return Some(Self::Plain); // a later fragment, which a session under way waits for
        }
        let start = body.0;
        let [_major, _minor] = body.array()?;
        let random = body.array()?;
        let parameters = &start[..start.len() - body.0.len()];
        if body.block8()?.len() > LONGEST_SESSION_ID {
            return None;
        }
        let cookie = body.block8()?;
        Some(Self::ClientHello(ClientHello {
            sequence,
            message_sequence,
            parameters,
            random,
            cookie,
        }))
    }
}

impl ClientHello<'_> {
    /// Whether it can be the answer to a `HelloVerifyRequest`: the client's second message.
    pub(super) fn is_second(&self) -> bool {
        self.message_sequence == [0, 1]
    }

    /// The answer that asks the client to repeat its message with a cookie.
    pub(super) fn verify_request(&self, cookie: [u8; COOKIE]) -> [u8; VERIFY_REQUEST] {
        const BODY: u8 = 3 + COOKIE as u8;
        let mut answer = [0; VERIFY_REQUEST];
        let mut rest = &mut answer[..];
        let mut put = |bytes: &[u8]| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(bytes.len());
            head.copy_from_slice(bytes);
            rest = tail;
        };
        put(&[HANDSHAKE]);
        put(&DTLS_1_0);
        put(&self.sequence);
        put(&[0, MESSAGE_HEADER as u8 + BODY]);
        put(&[HELLO_VERIFY_REQUEST, 0, 0, BODY]);
        put(&[0, 0]); // the number of the server's first message
        put(&[0, 0, 0, 0, 0, BODY]);
        put(&DTLS_1_0);
        put(&[COOKIE as u8]);
        put(&cookie);
        answer
    }
}

/// A record that ends a handshake in an orderly way: an alert, which is not encrypted yet (RFC 5246,
/// section 7.2.1).
pub(super) fn plain_close_notify(is_1_2: bool) -> [u8; RECORD_HEADER + 2] {
    const WARNING: u8 = 1;
    const CLOSE_NOTIFY: u8 = 0;
    last_record(ALERT, is_1_2, [WARNING, CLOSE_NOTIFY])
}

/// A record for a server that resumes a session and waits for the client's `Finished`: an empty
/// `ServerHello` in its place, for which the server ends the handshake with an alert.
pub(super) fn out_of_place(is_1_2: bool) -> [u8; RECORD_HEADER + MESSAGE_HEADER] {
    // The third message, after the first one with and without a cookie.
    last_record(HANDSHAKE, is_1_2, [SERVER_HELLO, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0])
}

/// A record that is not encrypted. Its number is the highest, so no other record has it.
fn last_record<const LEN: usize, const ALL: usize>(
    kind: u8,
    is_1_2: bool,
    content: [u8; LEN],
) -> [u8; ALL] {
    const { assert!(ALL == RECORD_HEADER + LEN) };
    let [major, minor] = if is_1_2 { DTLS_1_2 } else { DTLS_1_0 };
    let mut record = [255; ALL];
    record[..5].copy_from_slice(&[kind, major, minor, 0, 0]);
    record[RECORD_HEADER - 2..RECORD_HEADER].copy_from_slice(&(LEN as u16).to_be_bytes());
    record[RECORD_HEADER..].copy_from_slice(&content);
    record
}

/// The number of bytes in a datagram's records with data of the application.
pub(super) fn application_bytes(datagram: &[u8]) -> usize {
    let mut reader = Reader(datagram);
    let records = std::iter::from_fn(|| {
        let [kind, ..] = reader.array::<{ RECORD_HEADER - 2 }>()?;
        Some((kind, reader.block16()?.len()))
    });
    records.filter(|(kind, _)| *kind == APPLICATION_DATA).map(|(_, len)| len).sum()
}

/// Bytes that are read from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    /// Bytes after their length in one byte.
    fn block8(&mut self) -> Option<&'a [u8]> {
        let [len] = self.array()?;
        self.take(usize::from(len))
    }

    /// Bytes after their length in two bytes.
    fn block16(&mut self) -> Option<&'a [u8]> {
        let len = u16::from_be_bytes(self.array()?);
        self.take(usize::from(len))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A `ClientHello` as a client sends it, in one record.
    pub(in crate::net::dtls) fn client_hello(message: u8, random: u8, cookie: &[u8]) -> Vec<u8> {
        let mut body = vec![254, 253];
        body.extend([random; 32]);
        body.push(0);
        body.push(cookie.len() as u8);
        body.extend(cookie);
        body.extend([0, 2, 0xc0, 0x2b, 1, 0]);
        let len = body.len() as u8;
        let mut datagram = vec![22, 254, 255, 0, 0, 0, 0, 0, 0, 0, message, 0, 12 + len];
        datagram.extend([1, 0, 0, len, 0, message, 0, 0, 0, 0, 0, len]);
        datagram.extend(body);
        datagram
    }

    #[test]
    fn a_client_hello_is_read_up_to_its_cookie() {
        let datagram = client_hello(1, 7, b"crumbs");
        let FirstRecord::ClientHello(hello) = FirstRecord::parse(&datagram) else { panic!() };
        assert_eq!((hello.random, hello.cookie), ([7; 32], &b"crumbs"[..]));
        assert_eq!(hello.parameters, &datagram[25..59]);
        assert!(hello.is_second());
    }

    #[test]
    fn the_answer_repeats_the_sequence_number_and_is_shorter() {
        let datagram = client_hello(5, 0, b"");
        let FirstRecord::ClientHello(hello) = FirstRecord::parse(&datagram) else { panic!() };
        let answer = hello.verify_request([9; COOKIE]);
        assert!(answer.len() < datagram.len());
        assert_eq!(answer[3..11], datagram[3..11]);
        assert_eq!(usize::from(answer[12]), answer.len() - RECORD_HEADER);
        assert_eq!(answer[28..], [&[9; COOKIE][..]].concat());
    }

    #[test]
    fn the_answer_is_shorter_than_the_shortest_fragment() {
        let mut datagram = client_hello(0, 0, b"");
        let len = 2 + RANDOM as u8 + 1 + 1; // the version, the random and two empty blocks
        datagram.truncate(RECORD_HEADER + MESSAGE_HEADER + usize::from(len));
        datagram[12] = MESSAGE_HEADER as u8 + len;
        datagram[24] = len;
        assert!(matches!(FirstRecord::parse(&datagram), FirstRecord::ClientHello(_)));
        assert!(VERIFY_REQUEST < datagram.len());
    }

    #[test]
    fn records_are_told_apart_by_their_header() {
        let mut later = client_hello(1, 0, b"");
        later[21] = 5; // the offset of the fragment
        assert_eq!(FirstRecord::parse(&later), FirstRecord::Plain);
        let alert = [21, 254, 253, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 40];
        assert_eq!(FirstRecord::parse(&alert), FirstRecord::Plain);
        let data = [23, 254, 253, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        assert_eq!(FirstRecord::parse(&data), FirstRecord::Encrypted);
        for other in [&b""[..], b"GET / HTTP/1.1", &data[..13], &[0; 60]] {
            assert_eq!(FirstRecord::parse(other), FirstRecord::Invalid);
        }
    }

    #[test]
    fn only_data_of_the_application_count_as_such() {
        let data = [23, 254, 253, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 7, 7];
        let all = [&client_hello(1, 0, b""), &data[..], &data, &data[..14]].concat();
        assert_eq!(application_bytes(&all), 4);
        assert_eq!(application_bytes(b""), 0);
    }

    #[test]
    fn a_client_hello_cut_short_anywhere_is_invalid() {
        let datagram = client_hello(1, 0, &[1; COOKIE]);
        for len in 0..datagram.len() {
            assert_eq!(FirstRecord::parse(&datagram[..len]), FirstRecord::Invalid);
        }
    }

    proptest! {
        #[test]
        fn no_datagram_breaks_the_parser(datagram: Vec<u8>) {
            FirstRecord::parse(&datagram);
            prop_assert!(application_bytes(&datagram) <= datagram.len());
        }

        #[test]
        fn no_change_of_a_client_hello_breaks_the_parser(
            changes in proptest::collection::vec((0..100_usize, any::<u8>()), 0..6),
        ) {
            let mut datagram = client_hello(1, 0, &[1; COOKIE]);
            for (at, byte) in changes {
                let at = at % datagram.len();
                datagram[at] = byte;
            }
            if let FirstRecord::ClientHello(hello) = FirstRecord::parse(&datagram) {
                prop_assert_eq!(hello.parameters.len(), 2 + RANDOM);
            }
        }
    }
}
