//! Keeps records from OpenSSL that would make it end a session, although anyone can forge them.
//!
//! By RFC 6347, section 4.1.2.7, invalid records are dropped. OpenSSL drops a record whose
//! authentication fails. But if an encrypted record is too short to be authenticated at all, OpenSSL
//! ends the session with an `internal_error`. So only the part of a datagram before such a record is
//! read. The same applies to a record of which OpenSSL drops only the header, because it would take
//! the content for further records.
//!
//! Before the end of a handshake, everything is read: until then, a forged alert ends the session just
//! as well, because alerts are not encrypted yet.

use super::hello::{ALERT, DTLS_1_2, RECORD_HEADER};

/// The longest plaintext of a record.
pub(super) const LONGEST_PLAINTEXT: usize = 1 << 14;
/// `SSL3_RT_MAX_ENCRYPTED_OVERHEAD`: by how much a record may be longer than its plaintext.
const OVERHEAD: usize = 256 + 64;

/// The lengths that an encrypted record of a session can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lengths {
    shortest: usize,
    /// Of a record that is longer, OpenSSL drops the header only.
    longest: usize,
}

impl Lengths {
    /// The lengths with a cipher, by OpenSSL's name for it, and with the session's limit for
    /// plaintexts, if it has one.
    pub(super) fn new(cipher: &str, max_fragment: Option<usize>) -> Self {
        let longest = max_fragment.unwrap_or(LONGEST_PLAINTEXT) + OVERHEAD;
        Self { shortest: shortest(cipher), longest }
    }

    /// Returns the part of a datagram that the session may read.
    pub(super) fn readable(self, datagram: &[u8]) -> &[u8] {
        let mut at = 0;
        while let Some(header) =
            datagram.get(at..).and_then(|rest| rest.first_chunk::<RECORD_HEADER>())
        {
            let &[kind, major, minor, epoch1, epoch2, _, _, _, _, _, _, high, low] = header;
            let (version, len) = ([major, minor], usize::from(u16::from_be_bytes([high, low])));
            // As `dtls1_get_record` decides.
            let is_alert = kind == ALERT && major == DTLS_1_2[0];
            let is_read_whole = (version == DTLS_1_2 || is_alert) && len <= self.longest;
            let is_encrypted = [epoch1, epoch2] != [0, 0];
            if !is_read_whole || is_encrypted && len < self.shortest {
                return &datagram[..at];
            }
            at += RECORD_HEADER + len;
        }
        datagram // OpenSSL drops all of a record that is incomplete
    }
}

/// The length of the shortest record of a cipher, by OpenSSL's name for it.
fn shortest(cipher: &str) -> usize {
    let has = |part| cipher.contains(part);
    if has("CHACHA20") || has("CCM8") || has("NULL-MD5") {
        16 // the tag alone, or 8 bytes of a nonce with a tag of 8 bytes (RFC 7905, RFC 6655)
    } else if has("GCM") || has("CCM") {
        24 // 8 bytes of a nonce, and a tag of 16 (RFC 5288, RFC 6655)
    } else if has("DES") {
        32 // CBC: a vector of 8 bytes, and blocks of 8 with a code of 20
    } else if !has("NULL") || has("SHA384") {
        48 // CBC: a vector of 16 bytes, and blocks with a code of 20 bytes or more; or the code alone
    } else if has("SHA256") {
        32
    } else {
        20
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gcm() -> Lengths {
        Lengths::new("ECDHE-ECDSA-AES128-GCM-SHA256", None)
    }

    fn record(kind: u8, version: [u8; 2], epoch: u8, content: &[u8]) -> Vec<u8> {
        let mut record = vec![kind, version[0], version[1], 0, epoch, 0, 0, 0, 0, 0, 7];
        record.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
        record.extend(content);
        record
    }

    #[test]
    fn a_datagram_ends_before_a_record_that_is_too_short() {
        let (long, short) = (record(23, DTLS_1_2, 1, &[0; 24]), record(23, DTLS_1_2, 1, &[0; 23]));
        let plain = record(22, DTLS_1_2, 0, b"x");
        let datagram = [&long[..], &plain, &short, &long].concat();
        assert_eq!(gcm().readable(&datagram), [long, plain].concat());
    }

    #[test]
    fn a_header_that_openssl_drops_hides_nothing() {
        let short = record(23, DTLS_1_2, 1, b"short");
        let alert = record(ALERT, [254, 255], 1, &[0; 24]);
        let limited = Lengths::new("PSK-AES128-GCM-SHA256", Some(512));
        let long = |len| record(23, DTLS_1_2, 1, &vec![0; len]);
        for (lengths, hidden) in [
            (gcm(), record(22, [254, 255], 1, &short)),
            (gcm(), long(LONGEST_PLAINTEXT + OVERHEAD + 1)),
            (limited, long(512 + OVERHEAD + 1)),
        ] {
            let datagram = [&alert[..], &hidden, &short].concat();
            assert_eq!(lengths.readable(&datagram), alert);
            assert_eq!(lengths.readable(&datagram[..60]), alert);
        }
        assert_eq!(limited.readable(&long(512 + OVERHEAD)).len(), RECORD_HEADER + 512 + OVERHEAD);
    }

    #[test]
    fn the_cipher_decides_what_is_too_short() {
        let lengths = [
            ("ECDHE-ECDSA-AES128-GCM-SHA256", 24),
            ("PSK-AES128-CCM8", 16),
            ("PSK-AES256-CCM", 24),
            ("ECDHE-PSK-CHACHA20-POLY1305", 16),
            ("ECDHE-RSA-AES256-SHA384", 48),
            ("PSK-NULL-SHA256", 32),
            ("PSK-NULL-SHA", 20),
            ("NULL-MD5", 16),
            ("PSK-3DES-EDE-CBC-SHA", 32),
        ];
        for (cipher, len) in lengths {
            assert_eq!(shortest(cipher), len, "{cipher}");
        }
    }

    proptest! {
        #[test]
        fn what_is_left_of_any_datagram_is_its_beginning(
            datagram: Vec<u8>,
            shortest in 0..50_usize,
            longest in 50..20_000_usize,
        ) {
            let lengths = Lengths { shortest, longest };
            let left = lengths.readable(&datagram);
            prop_assert!(datagram.starts_with(left));
            prop_assert_eq!(lengths.readable(left), left);
        }
    }
}
