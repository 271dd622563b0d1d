//! Reads the bits of a NAL unit's payload: fixed-width fields and Exp-Golomb codes, without a copy.

/// A cursor over a raw byte sequence payload (RBSP) inside the bytes of its NAL unit.
///
/// Emulation prevention bytes (H.264 7.4.1, H.265 7.4.2) are skipped on the way. Every read past the end is `None`.
#[derive(Debug, Clone)]
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    /// Index of the byte that the next bit comes from.
    at: usize,
    /// Bits of that byte already taken, 0 to 7.
    taken: u32,
    /// Zero bytes in a row right before `at`.
    zeros: u32,
}

impl<'a> BitReader<'a> {
    /// Starts at the first bit of `payload`, a NAL unit without its header.
    pub(super) fn new(payload: &'a [u8]) -> Self {
        Self {
            bytes: payload,
            at: 0,
            taken: 0,
            zeros: 0,
        }
    }

    /// u(1) as a flag.
    pub(super) fn flag(&mut self) -> Option<bool> {
        let byte = *self.bytes.get(self.at)?;
        let bit = byte >> (7 - self.taken) & 1;
        self.taken += 1;
        if self.taken == 8 {
            self.taken = 0;
            self.at += 1;
            self.zeros = if byte == 0 { self.zeros + 1 } else { 0 };
            if self.zeros >= 2 && self.bytes.get(self.at) == Some(&3) {
                self.at += 1;
                self.zeros = 0;
            }
        }
        Some(bit == 1)
    }

    /// u(n), n up to 32.
    pub(super) fn bits(&mut self, count: u32) -> Option<u32> {
        debug_assert!(count <= 32, "u({count}) does not fit");
        let mut value = 0;
        for _ in 0..count {
            value = value << 1 | u32::from(self.flag()?);
        }
        Some(value)
    }

    /// u(8).
    pub(super) fn byte(&mut self) -> Option<u8> {
        u8::try_from(self.bits(8)?).ok()
    }

    /// Passes over `count` bits.
    pub(super) fn skip(&mut self, count: u32) -> Option<()> {
        for _ in 0..count {
            self.flag()?;
        }
        Some(())
    }

    /// ue(v) (H.264 9.1, H.265 9.2). `None` also for a value above 2^32 - 2, which no field may have.
    pub(super) fn ue(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while !self.flag()? {
            zeros += 1;
            if zeros == 32 {
                return None;
            }
        }
        Some((1 << zeros) - 1 + self.bits(zeros)?)
    }

    /// se(v) (H.264 9.1.1).
    pub(super) fn se(&mut self) -> Option<i32> {
        let code = self.ue()?;
        let magnitude = i32::try_from(code.div_ceil(2)).ok()?;
        Some(if code % 2 == 1 { magnitude } else { -magnitude })
    }
}

/// Writes what [`BitReader`] reads, for the tests of this module's neighbours.
#[cfg(test)]
pub(super) mod writer {
    /// Bits one after the other.
    #[derive(Default)]
    pub(in crate::codec) struct BitWriter(Vec<bool>);

    impl BitWriter {
        pub(in crate::codec) fn u(&mut self, count: u32, value: u32) -> &mut Self {
            self.0
                .extend((0..count).rev().map(|bit| value >> bit & 1 == 1));
            self
        }

        pub(in crate::codec) fn ue(&mut self, value: u32) -> &mut Self {
            let bits = (value + 1).ilog2();
            self.u(bits, 0).u(bits + 1, value + 1)
        }

        pub(in crate::codec) fn se(&mut self, value: i32) -> &mut Self {
            let code = value.unsigned_abs() * 2;
            self.ue(if value > 0 { code - 1 } else { code })
        }

        /// The NAL unit of these bits behind `header`: stop bit, alignment, emulation prevention.
        pub(in crate::codec) fn nal(&mut self, header: &[u8]) -> Vec<u8> {
            self.u(1, 1);
            let bytes = self.0.chunks(8).map(|byte| {
                let place = |(index, &bit): (usize, &bool)| u8::from(bit) << (7 - index);
                byte.iter().enumerate().map(place).sum()
            });
            [header, &escaped(bytes)].concat()
        }
    }

    /// `payload` with emulation prevention bytes.
    pub(in crate::codec) fn escaped(payload: impl IntoIterator<Item = u8>) -> Vec<u8> {
        let mut escaped = Vec::new();
        for byte in payload {
            if byte <= 3 && escaped.ends_with(&[0, 0]) {
                escaped.push(3);
            }
            escaped.push(byte);
        }
        escaped
    }

    pub(in crate::codec) fn hex(text: &str) -> Vec<u8> {
        let pair = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal digits");
        (0..text.len()).step_by(2).map(pair).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_follow_each_other_across_bytes() {
        let mut reader = BitReader::new(&[0b1010_0101, 0b1100_0011]);
        assert_eq!(reader.flag(), Some(true));
        assert_eq!(reader.bits(10), Some(0b01_0010_1110));
        assert_eq!(reader.skip(3), Some(()));
        assert_eq!(reader.bits(2), Some(0b11));
        assert_eq!(reader.flag(), None);
    }

    #[test]
    fn exp_golomb_codes_are_those_of_the_standards_table() {
        // 1, 010, 011, 00100, 00101, 00110, 00111, 0001000
        let mut reader = BitReader::new(&[0b1010_0110, 0b0100_0010, 0b1001_1000, 0b1110_0010, 0]);
        for expected in 0..8 {
            assert_eq!(reader.ue(), Some(expected));
        }
        let mut reader = BitReader::new(&[0b1010_0110, 0b0100_0010, 0b1001_1000, 0b1110_0010, 0]);
        for expected in [0, 1, -1, 2, -2, 3, -3, 4] {
            assert_eq!(reader.se(), Some(expected));
        }
    }

    #[test]
    fn the_longest_code_is_read_and_a_longer_one_refused() {
        let longest = [0, 0, 3, 0, 1, 0xFF, 0xFF, 0xFF, 0xFF];
        assert_eq!(BitReader::new(&longest).ue(), Some(u32::MAX - 1));
        assert_eq!(BitReader::new(&longest).se(), Some(-i32::MAX));
        assert_eq!(BitReader::new(&[0, 0, 3, 0, 0, 3, 0xFF]).ue(), None);
    }

    #[test]
    fn emulation_prevention_bytes_are_no_payload() {
        let mut reader = BitReader::new(&[0, 0, 3, 1, 0, 0, 3, 0, 0, 3, 3, 3]);
        let mut seen = Vec::new();
        while let Some(byte) = reader.byte() {
            seen.push(byte);
        }
        assert_eq!(seen, [0, 0, 1, 0, 0, 0, 0, 3, 3]);
    }
}
