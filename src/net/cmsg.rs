//! Control messages: the data that `sendmsg` and `recvmsg` carry beside the payload (`cmsg(3)`).
//!
//! The format is the kernel's: a `size_t` length that includes the header, two `int`s, the data,
//! and padding to the size of a `long`. This module reads and writes it as bytes, without casting
//! pointers or assuming alignment: musl aligns `struct cmsghdr` less strictly than glibc.

use std::ffi::c_int;

const LEVEL: usize = size_of::<usize>();
const KIND: usize = LEVEL + size_of::<c_int>();
const HEADER: usize = KIND + size_of::<c_int>();

/// One control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlMessage<'a> {
    /// The protocol level: `SOL_SOCKET`, `IPPROTO_IP`, …
    pub level: c_int,
    /// The type within the level: `SCM_RIGHTS`, `IP_PKTINFO`, …
    pub kind: c_int,
    /// The payload.
    pub data: &'a [u8],
    /// Whether the header claims more bytes than the buffer has, as after `MSG_CTRUNC` on some
    /// kernels. If so, this is the last message.
    pub is_truncated: bool,
}

/// The number of bytes that a message with `len` bytes of data takes: `CMSG_SPACE`.
pub const fn space(len: usize) -> usize {
    align(HEADER) + align(len)
}

const fn align(len: usize) -> usize {
    len.next_multiple_of(size_of::<usize>())
}

/// Decodes the messages in a control buffer, which has the length that the kernel reported.
///
/// For any input, this terminates and never reads outside the buffer.
pub fn decode(control: &[u8]) -> impl Iterator<Item = ControlMessage<'_>> {
    let mut rest = control;
    std::iter::from_fn(move || {
        let (header, body) = rest.split_at_checked(HEADER)?;
        let len = usize::from_ne_bytes(*header.first_chunk()?);
        let level = c_int::from_ne_bytes(*header[LEVEL..].first_chunk()?);
        let kind = c_int::from_ne_bytes(*header[KIND..].first_chunk()?);
        let data_len = len.checked_sub(HEADER)?;
        let is_truncated = data_len > body.len();
        let data = &body[..data_len.min(body.len())];
        rest = body.get(align(data.len())..).unwrap_or_default();
        Some(ControlMessage { level, kind, data, is_truncated })
    })
}

/// Appends a message to a control buffer.
pub fn encode(control: &mut Vec<u8>, level: c_int, kind: c_int, data: &[u8]) {
    let end = control.len() + space(data.len());
    control.reserve_exact(space(data.len()));
    control.extend_from_slice(&header(level, kind, data.len()));
    control.extend_from_slice(data);
    control.resize(end, 0);
}

fn header(level: c_int, kind: c_int, len: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..LEVEL].copy_from_slice(&(HEADER + len).to_ne_bytes());
    header[LEVEL..KIND].copy_from_slice(&level.to_ne_bytes());
    header[KIND..].copy_from_slice(&kind.to_ne_bytes());
    header
}

/// The few control messages that this library sends with a datagram, stored inline.
#[derive(Clone, Copy, Debug)]
pub struct ControlBuffer {
    bytes: [u8; Self::CAPACITY],
    len: usize,
}

impl ControlBuffer {
    /// Enough for an IPv6 source address, a segment size, and four other numbers: the maximum that
    /// is ever sent.
    const CAPACITY: usize = space(size_of::<libc::in6_pktinfo>()) + 5 * space(size_of::<u64>());

    /// An empty buffer.
    pub const EMPTY: Self = Self { bytes: [0; Self::CAPACITY], len: 0 };

    /// Appends a message. There is room for all that this library sends.
    pub fn push(&mut self, level: c_int, kind: c_int, data: &[u8]) {
        let slot = &mut self.bytes[self.len..][..space(data.len())];
        slot[..HEADER].copy_from_slice(&header(level, kind, data.len()));
        slot[HEADER..HEADER + data.len()].copy_from_slice(data);
        self.len += slot.len();
    }

    /// The messages.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(level: c_int, kind: c_int, data: &[u8]) -> ControlMessage<'_> {
        ControlMessage { level, kind, data, is_truncated: false }
    }

    #[test]
    fn messages_survive_a_round_trip_through_a_buffer() {
        let mut control = Vec::new();
        encode(&mut control, 1, 2, b"");
        encode(&mut control, 3, 4, b"five5");
        encode(&mut control, 6, 7, &[8; 8]);
        assert_eq!(control.len(), space(0) + space(5) + space(8));
        let decoded: Vec<_> = decode(&control).collect();
        let expected = [message(1, 2, b""), message(3, 4, b"five5"), message(6, 7, &[8; 8])];
        assert_eq!(decoded, expected);
    }

    #[test]
    fn a_control_buffer_holds_what_a_vector_would() {
        let (mut control, mut in_place) = (Vec::new(), ControlBuffer::EMPTY);
        assert!(in_place.as_bytes().is_empty());
        for (kind, data) in [(1, &[9; 2][..]), (2, &[7; 20])] {
            encode(&mut control, 5, kind, data);
            in_place.push(5, kind, data);
        }
        assert_eq!(in_place.as_bytes(), control);
    }

    #[test]
    fn the_layout_is_the_c_librarys() {
        for len in 0..64 {
            // SAFETY: CMSG_SPACE and CMSG_LEN only compute.
            let (total, end) = unsafe { (libc::CMSG_SPACE(len), libc::CMSG_LEN(len)) };
            assert_eq!(space(len as usize), total as usize);
            let mut control = Vec::new();
            encode(&mut control, 0, 0, &vec![0; len as usize]);
            assert_eq!(control[..size_of::<usize>()], (end as usize).to_ne_bytes());
        }
    }

    #[test]
    fn a_last_message_without_padding_is_read() {
        let mut control = Vec::new();
        encode(&mut control, 1, 2, b"abc");
        control.truncate(HEADER + 3);
        assert_eq!(decode(&control).collect::<Vec<_>>(), [message(1, 2, b"abc")]);
    }

    #[test]
    fn a_message_longer_than_the_buffer_is_truncated_and_ends_the_list() {
        let mut control = Vec::new();
        encode(&mut control, 1, 2, b"abcdefgh");
        control.truncate(HEADER + 3);
        let decoded: Vec<_> = decode(&control).collect();
        assert_eq!(
            decoded,
            [ControlMessage { level: 1, kind: 2, data: b"abc", is_truncated: true }]
        );
    }

    #[test]
    fn invalid_bytes_end_the_list() {
        assert_eq!(decode(&[]).count(), 0);
        assert_eq!(decode(&[0; 256]).count(), 0);
        assert_eq!(decode(&[1; 15]).count(), 0);
        assert_eq!(decode(&[0xff; 64]).count(), 1); // an enormous length: one truncated message
    }
}
