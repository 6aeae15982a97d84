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
    /// By a hash of bytes of the payload, and by [`Hash`](Self::Hash) if there are none.
    Key(Key),
}

/// Where in the payload a peer's identifier is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The offset of its first byte.
    pub offset: u16,
    /// Its length in bytes, up to [`Key::LONGEST`]. If a datagram ends earlier, it is shorter.
    pub len: u16,
    /// Whether the payload may begin behind a PROXY header.
    pub has_header: bool,
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
    fn program(self, sockets: u32) -> Option<Vec<libc::sock_filter>> {
        let value = match self {
            Self::Hash => return None,
            Self::Cpu => libc::SKF_AD_CPU,
            Self::Random => libc::SKF_AD_RANDOM,
            Self::Key(key) => return Some(key.program(sockets)),
        };
        Some(vec![
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

fn instruction(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// A jump over `yes` instructions if a comparison of A with `k` is true, and over `no` otherwise.
fn jump(comparison: u32, k: u32, yes: u8, no: u8) -> libc::sock_filter {
    let code = (libc::BPF_JMP | comparison | libc::BPF_K) as u16;
    libc::sock_filter { code, jt: yes, jf: no, k }
}

impl Key {
    /// The maximum length.
    pub const LONGEST: u16 = 64;
    /// A number that no socket has.
    const BY_ADDRESS: u32 = u32::MAX;

    /// Hashes the key's bytes (FNV-1a), as far as the datagram has them. The kernel runs the program
    /// without the UDP header, so the payload begins at 0 (`run_bpf_filter` in
    /// `net/core/sock_reuseport.c`), and uses its own hash if no socket has the returned number.
    fn program(self, sockets: u32) -> Vec<libc::sock_filter> {
        use libc::{
            BPF_A, BPF_ABS, BPF_ADD, BPF_ALU, BPF_B, BPF_H, BPF_IMM, BPF_IND, BPF_JA, BPF_JEQ,
            BPF_JGE, BPF_JGT, BPF_JMP, BPF_K, BPF_LD, BPF_LDX, BPF_LEN, BPF_MEM, BPF_MISC, BPF_MOD,
            BPF_MUL, BPF_RET, BPF_RSH, BPF_ST, BPF_STX, BPF_SUB, BPF_TAX, BPF_W, BPF_X, BPF_XOR,
        };
        const BASIS: u32 = 0x811c_9dc5;
        const PRIME: u32 = 0x0100_0193;
        // Cells of the program's memory: the hash, and the start and the length of the payload.
        const HASH: u32 = 0;
        const START: u32 = 1;
        const LEN: u32 = 2;
        let step = instruction;
        let (offset, len) = (u32::from(self.offset), u32::from(self.len));
        let mut program = vec![step(BPF_LDX | BPF_IMM, 0)];
        if self.has_header {
            // A PROXY header has a signature, and ends after 16 bytes plus the number in its last
            // two bytes.
            program.extend([
                step(BPF_LD | BPF_W | BPF_LEN, 0),
                jump(BPF_JGE, 16, 0, 9),
                step(BPF_LD | BPF_W | BPF_ABS, 0),
                jump(BPF_JEQ, 0x0d0a_0d0a, 0, 7),
                step(BPF_LD | BPF_W | BPF_ABS, 4),
                jump(BPF_JEQ, 0x000d_0a51, 0, 5),
                step(BPF_LD | BPF_W | BPF_ABS, 8),
                jump(BPF_JEQ, 0x5549_540a, 0, 3),
                step(BPF_LD | BPF_H | BPF_ABS, 14),
                step(BPF_ALU | BPF_ADD | BPF_K, 16),
                step(BPF_MISC | BPF_TAX, 0),
            ]);
        }
        program.extend([
            step(BPF_STX, START),
            step(BPF_LD | BPF_W | BPF_LEN, 0),
            libc::sock_filter { code: (BPF_JMP | BPF_JGE | BPF_X) as u16, jt: 1, jf: 0, k: 0 },
            step(BPF_RET | BPF_K, Self::BY_ADDRESS), // the header is truncated
            step(BPF_ALU | BPF_SUB | BPF_X, 0),
            step(BPF_ST, LEN),
            jump(BPF_JGT, offset, 1, 0),
            step(BPF_RET | BPF_K, Self::BY_ADDRESS),
            step(BPF_LD | BPF_IMM, BASIS),
            step(BPF_ST, HASH),
        ]);
        for index in 0..len {
            let bytes = [
                step(BPF_LD | BPF_MEM, LEN),
                jump(BPF_JGT, offset + index, 1, 0),
                step(BPF_JMP | BPF_JA, 6 + 9 * (len - index - 1)), // to the end of the key
                step(BPF_LDX | BPF_MEM, START),
                step(BPF_LD | BPF_B | BPF_IND, offset + index),
                step(BPF_LDX | BPF_MEM, HASH),
                step(BPF_ALU | BPF_XOR | BPF_X, 0),
                step(BPF_ALU | BPF_MUL | BPF_K, PRIME),
                step(BPF_ST, HASH),
            ];
            program.extend(bytes);
        }
        program.extend([
            step(BPF_LD | BPF_MEM, HASH),
            step(BPF_ALU | BPF_RSH | BPF_K, 16),
            step(BPF_LDX | BPF_MEM, HASH),
            step(BPF_ALU | BPF_XOR | BPF_X, 0),
            step(BPF_ALU | BPF_MOD | BPF_K, sockets),
            step(BPF_RET | BPF_A, 0),
        ]);
        program
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
            let program = steering.program(3)?;
            Some(program.iter().map(|step| (step.code, step.k)).collect::<Vec<_>>())
        };
        assert_eq!(words(Steering::Hash), None);
        // BPF_LD | BPF_W | BPF_ABS, BPF_ALU | BPF_MOD | BPF_K, BPF_RET | BPF_A
        let expected = |value| Some(vec![(0x20, value), (0x94, 3), (0x16, 0)]);
        assert_eq!(words(Steering::Cpu), expected(0xffff_f000 + 36));
        assert_eq!(words(Steering::Random), expected(0xffff_f000 + 56));
    }

    #[test]
    fn the_kernel_accepts_the_program() {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        let key = |len| Steering::Key(Key { offset: u16::MAX, len, has_header: true });
        for steering in [Steering::Hash, Steering::Cpu, Steering::Random, key(1), key(Key::LONGEST)]
        {
            steering.attach(socket.as_fd(), 2).unwrap();
        }
    }
}
