//! Byte strings in one piece of memory.

/// Byte strings, one after another, in memory that is reused.
#[derive(Default)]
pub struct Packets {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Packets {
    /// Appends one.
    pub fn push(&mut self, packet: &[u8]) {
        self.bytes.extend_from_slice(packet);
        self.ends.push(self.bytes.len());
    }

    /// The number of packets.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// One of them.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.bytes.get(start..end)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// Removes all.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_keep_their_order_and_length() {
        let mut packets = Packets::default();
        for _ in 0..2 {
            for packet in [&b"one"[..], b"", b"three"] {
                packets.push(packet);
            }
            assert_eq!(packets.iter().collect::<Vec<_>>(), [&b"one"[..], b"", b"three"]);
            assert_eq!((packets.len(), packets.get(3)), (3, None));
            packets.clear();
            assert!(packets.is_empty());
        }
    }
}
