//! Compiles the lists of networks into a socket filter, so that the kernel drops denied datagrams
//! before they take room in the socket's queue (`SO_ATTACH_FILTER` in `socket(7)`).
//!
//! The language is classic BPF (`linux/filter.h`): an accumulator, loads, and forward jumps by at
//! most 255 instructions, or by any number if unconditional. The filter of a UDP socket sees the
//! datagram from its UDP header on; the IP header is at the magic offset `SKF_NET_OFF`. An
//! `AF_INET6` socket receives both IPv4 and IPv6 datagrams, each with its original header.

use std::ffi::c_int;

use libc::sock_filter as Instruction;

use super::networks::Networks;

const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const JUMP_IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// A filter returns how much of the datagram to keep.
const ALL: u32 = u32::MAX;
const NOTHING: u32 = 0;

/// Offsets of the fields in the IP headers. The version is in the upper half of its byte.
const VERSION: c_int = 0;
const SOURCE_V4: c_int = 12;
const SOURCE_V6: c_int = 8;
const FIRST_OF_V6: u32 = 0x60;

/// The longest program that the kernel accepts.
const LONGEST: usize = libc::BPF_MAXINSNS as usize;

/// Compiles a filter that admits the same sources as [`Networks::allow`]; `None` if the kernel
/// would reject it as too long.
///
/// There is one exception: a datagram that arrives over IPv6 from an IPv4-mapped address passes.
/// The kernel drops it anyway, and if it does not, the guard decides.
pub fn kernel_filter(networks: &Networks) -> Option<Vec<Instruction>> {
    let (v4, v6) = (&networks.v4, &networks.v6);
    // Each change takes at least two instructions.
    if 2 * (v4.changes.len() + v6.changes.len()) > LONGEST {
        return None;
    }
    let changes: Vec<_> = v4.changes.iter().map(|&change| change.into()).collect();
    let v4 = SourceField { source: SOURCE_V4, words: 1 }.search(0, &changes, v4.first);
    let v6 = SourceField { source: SOURCE_V6, words: 4 }.search(0, &v6.changes, v6.first);
    let mut program = vec![load(LOAD_BYTE, VERSION)];
    program.extend(branch(FIRST_OF_V6, &v4, &v6));
    (program.len() <= LONGEST).then_some(program)
}

/// The position of the source address in a header, and its length in words of 32 bits.
struct SourceField {
    source: c_int,
    words: u32,
}

impl SourceField {
    /// Generates code for the addresses whose words before `word` are already matched. The first of
    /// them has the verdict `verdict`, which flips at each of `changes`; all changes lie after the
    /// first address.
    fn search(&self, word: u32, changes: &[u128], mut verdict: bool) -> Vec<Instruction> {
        if changes.is_empty() {
            return vec![decide(verdict)];
        }
        let below = 32 * (self.words - 1 - word);
        let value = |change: &u128| (change >> below) as u32;
        let is_whole = |change: &u128| change & ((1 << below) - 1) == 0;
        // For each range of the word's values: its first value, and the code for it.
        let mut pieces = vec![(0, vec![decide(verdict)])];
        for same in changes.chunk_by(|one, other| value(one) == value(other)) {
            let start = value(&same[0]);
            // A change may be at the first of the addresses with this value, ...
            let (whole, within) = same.split_at(usize::from(is_whole(&same[0])));
            verdict ^= !whole.is_empty();
            set(&mut pieces, start, self.search(word + 1, within, verdict));
            // ... and other changes may be among them, so the next word must be compared.
            if !within.is_empty()
                && let Some(next) = start.checked_add(1)
            {
                verdict ^= within.len() % 2 == 1;
                set(&mut pieces, next, vec![decide(verdict)]);
            }
        }
        let mut code = vec![load(LOAD_WORD, self.source + 4 * word as c_int)];
        code.extend(tree(&pieces));
        code
    }
}

/// Appends a piece, replacing a piece that starts at the same value.
fn set(pieces: &mut Vec<(u32, Vec<Instruction>)>, start: u32, code: Vec<Instruction>) {
    pieces.pop_if(|piece| piece.0 == start);
    pieces.push((start, code));
}

/// A binary search for the piece that contains the accumulator.
fn tree(pieces: &[(u32, Vec<Instruction>)]) -> Vec<Instruction> {
    if let [(_, code)] = pieces {
        return code.clone();
    }
    let (below, from) = pieces.split_at(pieces.len() / 2);
    branch(from[0].0, &tree(below), &tree(from))
}

/// Continues with `below` if the accumulator is below `value`, and with `from` otherwise.
fn branch(value: u32, below: &[Instruction], from: &[Instruction]) -> Vec<Instruction> {
    let mut code = match u8::try_from(below.len()) {
        Ok(len) => vec![instruction(JUMP_IF_AT_LEAST, len, 0, value)],
        Err(_) => vec![
            instruction(JUMP_IF_AT_LEAST, 0, 1, value),
            instruction(JUMP, 0, 0, below.len() as u32),
        ],
    };
    code.extend_from_slice(below);
    code.extend_from_slice(from);
    code
}

fn load(code: u32, offset: c_int) -> Instruction {
    instruction(code, 0, 0, (libc::SKF_NET_OFF + offset) as u32)
}

fn decide(is_allowed: bool) -> Instruction {
    instruction(RETURN, 0, 0, if is_allowed { ALL } else { NOTHING })
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> Instruction {
    Instruction { code: code as u16, jt, jf, k }
}

/// Runs a filter on an IP header as the kernel does (`bpf(4)`); returns whether the datagram
/// passes.
///
/// For tests: panics if the kernel would reject the program.
#[doc(hidden)]
pub fn run(program: &[Instruction], header: &[u8]) -> bool {
    assert!((1..=LONGEST).contains(&program.len()));
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let offset = || (k as c_int - libc::SKF_NET_OFF) as usize;
        match u32::from(code) {
            LOAD_BYTE => accumulator = header[offset()].into(),
            LOAD_WORD => {
                let word = header[offset()..].first_chunk().expect("a load within the header");
                accumulator = u32::from_be_bytes(*word);
            }
            JUMP => at += k as usize,
            JUMP_IF_AT_LEAST => at += usize::from(if accumulator >= k { jt } else { jf }),
            RETURN => return k != NOTHING,
            other => panic!("not an instruction of a filter: {other:#x}"),
        }
    }
}

/// The part of a header that filters read, for a source address.
#[doc(hidden)]
pub fn header(source: std::net::IpAddr) -> Vec<u8> {
    let (version, at, octets) = match source {
        std::net::IpAddr::V4(source) => (0x45, SOURCE_V4, source.octets().to_vec()),
        std::net::IpAddr::V6(source) => (0x60, SOURCE_V6, source.octets().to_vec()),
    };
    let mut header = vec![0; at as usize];
    header[VERSION as usize] = version;
    header.extend(octets);
    header
}

#[cfg(test)]
mod tests {
    use super::super::networks::parse_network;
    use super::super::networks::tests::{any_lists, probes};
    use super::*;
    use proptest::prelude::*;
    use std::net::IpAddr;

    fn passes(program: &[Instruction], source: IpAddr) -> bool {
        run(program, &header(source))
    }

    fn denying(texts: impl Iterator<Item = String>) -> Networks {
        let deny: Vec<_> = texts.map(|text| parse_network(&text).unwrap()).collect();
        Networks::new(None, &deny).unwrap()
    }

    #[test]
    fn a_short_list_makes_a_short_filter() {
        let everyone = kernel_filter(&denying(std::iter::empty())).unwrap();
        let one = kernel_filter(&denying(std::iter::once("10.0.0.0/8".to_owned()))).unwrap();
        assert_eq!(one.len() - everyone.len(), 5); // a load, two comparisons, two more results
        assert!(!passes(&one, "10.255.0.1".parse().unwrap()));
        assert!(passes(&one, "::10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn a_long_list_takes_long_jumps_and_a_longer_one_is_left_to_the_guard() {
        let every_other = |count: u32| {
            denying((0..count).map(|net| format!("10.{}.{}.0/24", net >> 7, 2 * (net & 127))))
        };
        let networks = every_other(900);
        let program = kernel_filter(&networks).unwrap();
        assert!(program.iter().any(|instruction| u32::from(instruction.code) == JUMP));
        for third in 0..=255 {
            for second in 0..8 {
                let source = IpAddr::from([10, second, third, 77]);
                assert_eq!(passes(&program, source), networks.allow(source), "{source}");
            }
        }
        assert_eq!(kernel_filter(&every_other(1100)).map(|program| program.len()), None);
    }

    proptest! {
        #[test]
        fn a_filter_and_the_guard_agree((allow, deny, networks) in any_lists()) {
            let program = kernel_filter(&networks).unwrap();
            for source in probes(allow.iter().flatten().chain(&deny)) {
                if source.to_canonical() == source {
                    prop_assert_eq!(passes(&program, source), networks.allow(source), "{}", source);
                }
            }
        }
    }
}
