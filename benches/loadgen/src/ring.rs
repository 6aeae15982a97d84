//! Messages for `recvmmsg` and `sendmmsg`.

use std::io;
use std::net::{SocketAddrV4, UdpSocket};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr;

use libc::{iovec, mmsghdr, sockaddr_in};

use crate::sys::{self, LONGEST_DATAGRAM, LONGEST_RUN};

/// Slots of memory, and the headers that point to them.
pub(crate) struct Ring {
    slot_len: usize,
    stride: usize,
    memory: Vec<u8>,
    vectors: Vec<iovec>,
    names: Vec<sockaddr_in>,
    controls: Vec<Control>,
    headers: Vec<mmsghdr>,
}

/// Room for one control message, aligned as the kernel requires.
type Control = [u64; 4];

/// One received message.
#[derive(Clone, Copy)]
pub(crate) struct Message {
    pub(crate) len: usize,
    /// The length of the datagrams in it, if the kernel has coalesced several.
    pub(crate) segment: Option<usize>,
}

impl Message {
    pub(crate) fn datagrams(self) -> usize {
        self.segment.map_or(1, |segment| self.len.div_ceil(segment.max(1)).max(1))
    }
}

impl Ring {
    pub(crate) fn new(slots: usize, slot_len: usize) -> Self {
        // Slots whose starts are multiples of a power of two would compete for a few cache sets.
        let stride = slot_len.next_multiple_of(64) + 64;
        let vector = iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        // SAFETY: both are C structures, for which zeroes and null pointers are valid.
        let (name, header) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            slot_len,
            stride,
            memory: vec![0; stride * slots],
            vectors: vec![vector; slots],
            names: vec![name; slots],
            controls: vec![[0; 4]; slots],
            headers: vec![header; slots],
        }
    }

    pub(crate) fn slots(&self) -> usize {
        self.headers.len()
    }

    /// A slot's memory.
    pub(crate) fn slot(&mut self, slot: usize) -> &mut [u8] {
        &mut self.memory[slot * self.stride..][..self.slot_len]
    }

    /// Receives as many messages as there are, up to the number of slots.
    pub(crate) fn receive(
        &mut self,
        socket: &UdpSocket,
        flags: i32,
        with_control: bool,
    ) -> io::Result<usize> {
        let control_len = if with_control { size_of::<Control>() } else { 0 };
        for slot in 0..self.slots() {
            self.point(slot, self.slot_len);
            let name = ptr::from_mut(&mut self.names[slot]).cast();
            let control = ptr::from_mut(&mut self.controls[slot]).cast();
            let vector = &raw mut self.vectors[slot];
            let header = &mut self.headers[slot].msg_hdr;
            (header.msg_iov, header.msg_iovlen) = (vector, 1);
            (header.msg_name, header.msg_namelen) = (name, size_of::<sockaddr_in>() as u32);
            (header.msg_control, header.msg_controllen) = (control, control_len as _);
            header.msg_flags = 0;
        }
        let (fd, start, count) = (socket.as_raw_fd(), self.headers.as_mut_ptr(), self.slots());
        // SAFETY: the loop above has pointed each of `count` headers at memory, a name and a
        // control buffer of this ring, of the lengths that it says.
        let received =
            unsafe { libc::recvmmsg(fd, start, count as u32, flags as _, ptr::null_mut()) };
        if received == -1 { Err(io::Error::last_os_error()) } else { Ok(received as usize) }
    }

    /// A message from the last receive.
    pub(crate) fn message(&self, slot: usize) -> Message {
        let header = &self.headers[slot];
        Message { len: header.msg_len as usize, segment: segment(&header.msg_hdr) }
    }

    /// The payload of a message from the last receive.
    pub(crate) fn payload(&self, slot: usize) -> &[u8] {
        &self.memory[slot * self.stride..][..self.message(slot).len]
    }

    /// The sender of a message from the last receive.
    #[cfg(feature = "dtls")]
    pub(crate) fn sender(&self, slot: usize) -> SocketAddrV4 {
        let name = &self.names[slot];
        let host = u32::from_be(name.sin_addr.s_addr);
        SocketAddrV4::new(host.into(), u16::from_be(name.sin_port))
    }

    /// Turns the first `len` bytes of a slot into a message to send: to an address, or to the
    /// connected peer; split into segments if a segment length is given.
    pub(crate) fn prepare(
        &mut self,
        slot: usize,
        len: usize,
        to: Option<SocketAddrV4>,
        segment: Option<usize>,
    ) {
        self.point(slot, len);
        if let Some(to) = to {
            self.names[slot] = raw_address(to);
        }
        self.address(slot, slot..slot + 1, to.is_some(), segment);
    }

    /// Turns the messages of the last receive into replies to their senders, and returns the number
    /// of replies. There are fewer replies than messages if consecutive ones to the same client can
    /// leave in one send.
    pub(crate) fn prepare_replies(&mut self, received: usize, offload: bool) -> usize {
        let (mut replies, mut slot) = (0, 0);
        while slot < received {
            let message = self.message(slot);
            let mut end = slot + 1;
            if offload && message.segment.is_none() && message.len > 0 {
                let most = LONGEST_RUN.min(LONGEST_DATAGRAM / message.len);
                while end < received && end - slot < most && self.is_like(slot, end) {
                    end += 1;
                }
            }
            for slot in slot..end {
                self.point(slot, message.len);
            }
            let coalesced = (end - slot > 1).then_some(message.len);
            let segment = message.segment.filter(|&segment| segment < message.len).or(coalesced);
            // This header belongs to a message that has already been processed: there are never
            // more replies than messages.
            self.address(replies, slot..end, true, segment);
            replies += 1;
            slot = end;
        }
        replies
    }

    /// Sends prepared messages, and returns how many were sent.
    pub(crate) fn send(
        &mut self,
        socket: &UdpSocket,
        messages: Range<usize>,
        flags: i32,
    ) -> io::Result<usize> {
        let headers = &mut self.headers[messages];
        let (fd, start, count) = (socket.as_raw_fd(), headers.as_mut_ptr(), headers.len());
        // SAFETY: the headers were prepared: each leads to memory, and perhaps a name and a
        // control message, of this ring.
        let sent = unsafe { libc::sendmmsg(fd, start, count as u32, flags as _) };
        if sent == -1 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
    }

    /// Sends the first `count` prepared messages, even those to clients that have exited.
    pub(crate) fn send_all(&mut self, socket: &UdpSocket, count: usize) -> io::Result<()> {
        let mut next = 0;
        while next < count {
            match self.send(socket, next..count, 0) {
                Ok(sent) => next += sent,
                // The error is about an earlier message, whose receiver has exited.
                Err(error) if sys::is_refused(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Points a slot's iovec at its first `len` bytes.
    fn point(&mut self, slot: usize, len: usize) {
        assert!(len <= self.slot_len);
        let start = self.memory.as_mut_ptr().wrapping_add(slot * self.stride);
        self.vectors[slot] = iovec { iov_base: start.cast(), iov_len: len };
    }

    /// Sets up a header for a message made of several slots, addressed to the sender of the first.
    fn address(
        &mut self,
        header: usize,
        slots: Range<usize>,
        is_named: bool,
        segment: Option<usize>,
    ) {
        let name_len = if is_named { size_of::<sockaddr_in>() as u32 } else { 0 };
        let name = if is_named { &raw mut self.names[slots.start] } else { ptr::null_mut() };
        let control = segment.map_or(ptr::null_mut(), |segment| {
            let control = &raw mut self.controls[header];
            write_segment(&mut self.controls[header], segment as u16);
            control
        });
        let control_len = if segment.is_some() { SEGMENT_SPACE } else { 0 };
        let vectors = &mut self.vectors[slots];
        let message = &mut self.headers[header].msg_hdr;
        (message.msg_iov, message.msg_iovlen) = (vectors.as_mut_ptr(), vectors.len() as _);
        (message.msg_name, message.msg_namelen) = (name.cast(), name_len);
        (message.msg_control, message.msg_controllen) = (control.cast(), control_len as _);
        message.msg_flags = 0;
    }

    /// Whether two received messages are single datagrams of equal length from the same client.
    fn is_like(&self, first: usize, second: usize) -> bool {
        let (one, other) = (self.message(first), self.message(second));
        let (from, of) = (&self.names[first], &self.names[second]);
        one.len == other.len
            && other.segment.is_none()
            && (from.sin_port, from.sin_addr.s_addr) == (of.sin_port, of.sin_addr.s_addr)
    }
}

fn raw_address(address: SocketAddrV4) -> sockaddr_in {
    sockaddr_in {
        sin_family: libc::AF_INET as _,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    }
}

/// `CMSG_SPACE(sizeof(uint16_t))`.
// SAFETY: the macro only computes.
const SEGMENT_SPACE: usize = unsafe { libc::CMSG_SPACE(size_of::<u16>() as u32) } as usize;

/// Writes a `UDP_SEGMENT` control message.
fn write_segment(control: &mut Control, segment: u16) {
    const { assert!(SEGMENT_SPACE <= size_of::<Control>()) };
    let header = ptr::from_mut(control).cast::<libc::cmsghdr>();
    // SAFETY: the buffer is aligned for the header, and has room for it and its data.
    unsafe {
        (*header).cmsg_level = libc::SOL_UDP;
        (*header).cmsg_type = libc::UDP_SEGMENT;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as _;
        libc::CMSG_DATA(header).cast::<u16>().write_unaligned(segment);
    }
}

/// Reads a `UDP_GRO` control message, the only kind that the sockets request.
fn segment(message: &libc::msghdr) -> Option<usize> {
    // SAFETY: the header leads to a control buffer that the kernel has filled as far as it says.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(message).as_ref()?;
        let is_segment = header.cmsg_level == libc::SOL_UDP && header.cmsg_type == libc::UDP_GRO;
        is_segment.then(|| libc::CMSG_DATA(header).cast::<i32>().read_unaligned() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn pair() -> (UdpSocket, UdpSocket) {
        let (one, other) = (crate::sys::bind([127, 0, 0, 1].into(), None).unwrap(), {
            UdpSocket::bind("127.0.0.1:0").unwrap()
        });
        crate::sys::set_option(&one, libc::SOL_UDP, libc::UDP_GRO, 1).unwrap();
        (one, other)
    }

    fn v4(socket: &UdpSocket) -> SocketAddrV4 {
        let SocketAddr::V4(address) = socket.local_addr().unwrap() else { unreachable!() };
        address
    }

    #[test]
    fn a_run_comes_glued_and_goes_back_as_it_came() {
        let (server, client) = pair();
        let mut requests = Ring::new(1, 640);
        requests.slot(0).copy_from_slice(&[7; 640]);
        requests.prepare(0, 640, Some(v4(&server)), Some(64));
        assert_eq!(requests.send(&client, 0..1, 0).unwrap(), 1);
        let mut ring = Ring::new(4, 65_536);
        let received = ring.receive(&server, libc::MSG_WAITFORONE, true).unwrap();
        assert_eq!((received, ring.message(0).datagrams()), (1, 10));
        assert_eq!(ring.payload(0), [7; 640]);
        assert_eq!(ring.prepare_replies(received, true), 1);
        assert_eq!(ring.send(&server, 0..1, 0).unwrap(), 1);
        for _ in 0..10 {
            assert_eq!(client.recv(&mut [0; 100]).unwrap(), 64);
        }
    }

    #[test]
    fn neighbours_of_one_size_to_one_client_leave_as_one() {
        let (server, client) = pair();
        for len in [5, 5, 5, 3, 5] {
            client.send_to(&vec![1; len], v4(&server)).unwrap();
        }
        let mut ring = Ring::new(8, 2048);
        let received = ring.receive(&server, libc::MSG_WAITFORONE, true).unwrap();
        assert_eq!(received, 5);
        assert_eq!(ring.prepare_replies(received, true), 3);
        assert_eq!(ring.send(&server, 0..3, 0).unwrap(), 3);
        let lens = [(); 5].map(|()| client.recv(&mut [0; 100]).unwrap());
        assert_eq!(lens, [5, 5, 5, 3, 5]);
    }
}
