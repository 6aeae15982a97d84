//! How the kernel chooses among the sockets of a reuseport group.

use std::io;
use std::os::fd::BorrowedFd;

use super::sys;

/// How the kernel assigns a datagram to one of the sockets that share a port (`SO_REUSEPORT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering {
    /// By a hash of both addresses and ports, the kernel's default: all datagrams of one peer go to
    /// the same socket.
    Hash,
    /// By the CPU that the kernel received it on.
    Cpu,
    /// At random.
    Random,
}

impl Steering {
    /// Steers the reuseport group of a socket. Its sockets are numbered in the order in which they
    /// were bound.
    pub fn attach(self, fd: BorrowedFd<'_>, sockets: u32) -> io::Result<()> {
        match self.program(sockets.max(1)) {
            Some(program) => sys::attach_program(fd, libc::SO_ATTACH_REUSEPORT_CBPF, &program),
            None => Ok(()),
        }
    }

    /// The classic BPF program that returns a socket's number
    /// (Documentation/networking/filter.rst in the kernel's sources).
    fn program(self, sockets: u32) -> Option<[libc::sock_filter; 3]> {
        let value = match self {
            Self::Hash => return None,
            Self::Cpu => libc::SKF_AD_CPU,
            Self::Random => libc::SKF_AD_RANDOM,
        };
        let instruction =
            |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
        Some([
            // Loads from this address are the kernel's own values, not the datagram's bytes.
            instruction(
                libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
                (libc::SKF_AD_OFF + value) as u32,
            ),
            instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, sockets),
            instruction(libc::BPF_RET | libc::BPF_A, 0),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};
    use std::os::fd::AsFd;

    #[test]
    fn the_program_is_a_value_modulo_the_sockets() {
        let words = |steering: Steering| {
            steering.program(3).map(|program| program.map(|step| (step.code, step.k)))
        };
        assert_eq!(words(Steering::Hash), None);
        // BPF_LD | BPF_W | BPF_ABS, BPF_ALU | BPF_MOD | BPF_K, BPF_RET | BPF_A
        let expected = |value| Some([(0x20, value), (0x94, 3), (0x16, 0)]);
        assert_eq!(words(Steering::Cpu), expected(0xffff_f000 + 36));
        assert_eq!(words(Steering::Random), expected(0xffff_f000 + 56));
    }

    #[test]
    fn the_kernel_accepts_the_program() {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        for steering in [Steering::Hash, Steering::Cpu, Steering::Random] {
            steering.attach(socket.as_fd(), 2).unwrap();
        }
    }
}
