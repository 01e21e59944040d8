//! Damage with a seed: what a test does to good inputs where no fuzzer with an eye on coverage is at hand.

/// A generator of numbers, the same on every machine (Steele et al. 2014, SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// Pieces that decide something somewhere: numbers at the edge, quotes, brackets, words of the formats.
const PIECES: [&[u8]; 40] = [
    b"0",
    b"-1",
    b"1e999",
    b"18446744073709551615",
    b"9223372036854775808",
    b"4294967295",
    b"0.5",
    b"null",
    b"true",
    b"{}",
    b"[]",
    b"\"\"",
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\n",
    b"\r\n",
    b"\0",
    b"\xef\xbb\xbf",
    b"\xff",
    b"\\ud800",
    b"\\u0000",
    b"{{",
    b"}}",
    b"{%",
    b"%}",
    b"{#",
    b" ~ ",
    b" | ",
    b"../",
    b"/etc/passwd",
    b"--",
    b"=",
    b"\xf0\x9f\x99\x82",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
];

/// `seed`, changed in one to four places; `other` is what pieces of are put in.
pub fn mutated(seed: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = (at + 1 + random.below(16)).min(bytes.len());
        match random.below(9) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            2 if at < bytes.len() => bytes[at] = random.next() as u8,
            3 if at < end => drop(bytes.drain(at..end)),
            4 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            5 => drop(bytes.splice(at..at, PIECES[random.below(PIECES.len())].iter().copied())),
            6 if at < end => drop(bytes.splice(at..end, PIECES[random.below(PIECES.len())].iter().copied())),
            7 if !other.is_empty() => {
                let from = random.below(other.len());
                let piece = &other[from..(from + 1 + random.below(64)).min(other.len())];
                drop(bytes.splice(at..at, piece.iter().copied()));
            }
            8 if random.below(8) == 0 => bytes.truncate(at),
            _ => {}
        }
    }
    bytes
}

/// Runs `body` on every seed and on `executions` mutations of them, and says how many it accepted.
pub fn smoke(name: &str, seeds: &[Vec<u8>], executions: usize, body: impl Fn(&[u8]) -> bool) -> usize {
    let mut random = Random(name.bytes().fold(7, |hash, byte| hash * 31 + u64::from(byte)));
    let begun = std::time::Instant::now();
    let mut accepted = 0;
    for _ in 0..executions {
        let (seed, other) = (&seeds[random.below(seeds.len())], &seeds[random.below(seeds.len())]);
        accepted += usize::from(body(&mutated(seed, other, &mut random)));
    }
    println!("{name}: {executions} executions in {:.1} s, {accepted} accepted", begun.elapsed().as_secs_f64());
    accepted
}
