//! The header that a proxy puts in front of a datagram.

use std::net::SocketAddr;

use proxy_header::{ParseConfig, ProxiedAddress, ProxyHeader};

/// The bytes that every header of version 2 begins with.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The length of the part that precedes the addresses. Its last two bytes are the length of the
/// rest.
const FIXED_LEN: usize = 16;
/// The index of the byte with the address family, in its upper half.
const FAMILY: usize = 13;
/// The type of the additional field that contains a checksum of the header (`PP2_TYPE_CRC32C`).
const CRC32C: u8 = 3;

/// The content of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The client's address; `None` if the proxy sends the datagram on its own behalf, for example
    /// to check the server's health.
    pub client: Option<SocketAddr>,
    /// The header's length.
    pub len: usize,
}

/// A header that violates the specification, or whose checksum is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl Header {
    /// Whether a payload begins like a header.
    #[inline]
    pub fn is_at_start(payload: &[u8]) -> bool {
        payload.starts_with(SIGNATURE)
    }

    /// Parses the header at the start of a payload.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let config = ParseConfig { include_tlvs: false, allow_v1: false, allow_v2: true };
        let (header, len) = ProxyHeader::parse(payload, config).map_err(|_| Malformed)?;
        let client = header.proxied_address().map(|address| address.source);
        let is_proxied = payload[FAMILY - 1] & 0xf != 0;
        let addresses_len = match payload[FAMILY] >> 4 {
            1 => 12,
            2 => 36,
            3 if is_proxied => return Err(Malformed), // no client has an AF_UNIX address here
            _ => return Ok(Self { client, len }),
        };
        check_fields(&payload[..len], FIXED_LEN + addresses_len)?;
        Ok(Self { client, len })
    }

    /// Encodes the header for a datagram from a client to a server. Both must be of one family.
    pub fn encode(client: SocketAddr, server: SocketAddr) -> Option<Vec<u8>> {
        let header = ProxyHeader::with_address(ProxiedAddress::datagram(client, server));
        let mut bytes = vec![0; 64];
        let len = header.encode_to_slice_v2(&mut bytes).ok()?;
        bytes.truncate(len);
        Some(bytes)
    }
}

/// Checks the additional fields from `start` on: each has a type, a length of two bytes and a
/// value. Only the checksum's value matters.
fn check_fields(header: &[u8], start: usize) -> Result<(), Malformed> {
    let mut at = start;
    while at < header.len() {
        let field = header[at..].first_chunk::<3>().ok_or(Malformed)?;
        let value = at + field.len();
        let end = value + usize::from(u16::from_be_bytes([field[1], field[2]]));
        let bytes = header.get(value..end).ok_or(Malformed)?;
        if field[0] == CRC32C {
            let sum = u32::from_be_bytes(bytes.try_into().map_err(|_| Malformed)?);
            // It is the sum of a header in which the sum itself is zero.
            let before = crc32c::crc32c_append(crc32c::crc32c(&header[..value]), &[0; 4]);
            if crc32c::crc32c_append(before, &header[end..]) != sum {
                return Err(Malformed);
            }
        }
        at = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with an arbitrary address part and additional fields.
    fn bytes(command: u8, family: u8, addresses: &[u8], fields: &[u8]) -> Vec<u8> {
        let len = (addresses.len() + fields.len()) as u16;
        [SIGNATURE, &[command, family], &len.to_be_bytes(), addresses, fields].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 4, 210, 0, 53];

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_header_survives_being_encoded() {
        for (from, to) in [("192.0.2.1:1234", "198.51.100.2:53"), ("[2001:db8::1]:9", "[::1]:53")] {
            let mut payload = Header::encode(address(from), address(to)).unwrap();
            let len = payload.len();
            payload.extend(b"payload");
            assert!(Header::is_at_start(&payload));
            assert_eq!(Header::parse(&payload), Ok(Header { client: Some(address(from)), len }));
        }
        let mixed = Header::encode(address("192.0.2.1:1"), address("[::1]:1"));
        assert_eq!(mixed, None);
    }

    #[test]
    fn a_proxys_own_datagram_has_no_client() {
        let (local, proxied) = (0x20, 0x21);
        for header in [
            bytes(local, 0, &[], &[]),
            bytes(local, 0x12, &V4, &[]),
            bytes(local, 0x31, &[0; 216], &[]),
            bytes(proxied, 0, b"anything", &[]),
        ] {
            assert_eq!(Header::parse(&header), Ok(Header { client: None, len: header.len() }));
        }
        assert_eq!(Header::parse(&bytes(proxied, 0x31, &[0; 216], &[])), Err(Malformed));
    }

    #[test]
    fn a_client_that_used_tcp_is_a_client_too() {
        let header = bytes(0x21, 0x11, &V4, &[]);
        assert_eq!(Header::parse(&header).unwrap().client, Some(address("192.0.2.1:1234")));
    }

    #[test]
    fn every_truncated_header_is_malformed() {
        let header = bytes(0x21, 0x12, &V4, &[4, 0, 2, 0, 0]);
        for len in 0..header.len() {
            assert_eq!(Header::parse(&header[..len]), Err(Malformed), "{len}");
        }
        assert!(Header::parse(&header).is_ok());
    }

    #[test]
    fn versions_commands_families_and_lengths_are_checked() {
        for (command, family, addresses) in [
            (0x11, 0x12, &V4[..]),
            (0x22, 0x12, &V4),
            (0x21, 0x42, &V4),
            (0x21, 0x13, &V4),
            (0x21, 0x12, &V4[..11]),
            (0x21, 0x22, &V4),
        ] {
            assert_eq!(Header::parse(&bytes(command, family, addresses, &[])), Err(Malformed));
        }
        assert_eq!(Header::parse(b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n"), Err(Malformed));
    }

    #[test]
    fn fields_must_end_with_the_header() {
        for (fields, is_valid) in [
            (&[4, 0, 0][..], true),
            (&[0xe0, 0, 2, 7, 7, 5, 0, 1, 9], true),
            (&[4], false),
            (&[4, 0], false),
            (&[4, 0, 1], false),
            (&[4, 0, 0, 5, 0, 2, 1], false),
        ] {
            assert_eq!(Header::parse(&bytes(0x21, 0x12, &V4, fields)).is_ok(), is_valid);
        }
    }

    #[test]
    fn a_checksum_must_be_right() {
        let fields = [4, 0, 1, 7, CRC32C, 0, 4, 0, 0, 0, 0, 0xe0, 0, 1, 9];
        let mut header = bytes(0x21, 0x12, &V4, &fields);
        assert_eq!(Header::parse(&header), Err(Malformed));
        let (sum, at) = (crc32c::crc32c(&header).to_be_bytes(), FIXED_LEN + V4.len() + 7);
        header[at..at + 4].copy_from_slice(&sum);
        assert!(Header::parse(&header).is_ok());
        for index in FIXED_LEN..header.len() {
            let mut changed = header.clone();
            changed[index] ^= 0x40;
            let is_type = index == at - 3; // then it is another field
            assert_eq!(Header::parse(&changed).is_ok(), is_type, "{index}");
        }
        assert_eq!(
            Header::parse(&bytes(0x21, 0x12, &V4, &[CRC32C, 0, 3, 0, 0, 0])),
            Err(Malformed)
        );
    }
}
