//! Mutation of packets.

use rand::Rng;
use rand::rngs::StdRng;

/// Longest packet that is made: the largest that the outer datagram can carry is not needed.
const LONGEST: usize = 3_000;

/// A packet: random bytes, or one of the corpus with some mutations. Mostly its lengths and
/// checksum are made right again, or nothing behind the first check would ever be reached.
pub fn packet(corpus: &[Vec<u8>], rng: &mut StdRng) -> Vec<u8> {
    if corpus.is_empty() || rng.random_bool(0.02) {
        let length = rng.random_range(0..200);
        return (0..length).map(|_| rng.random()).collect();
    }
    let mut bytes = corpus[rng.random_range(0..corpus.len())].clone();
    for _ in 0..rng.random_range(0..6) {
        mutate(&mut bytes, corpus, rng);
    }
    bytes.truncate(LONGEST);
    if rng.random_bool(0.9) {
        make_right(&mut bytes);
    }
    bytes
}

fn mutate(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], rng: &mut StdRng) {
    if bytes.is_empty() {
        bytes.push(rng.random());
        return;
    }
    // Mostly behind the IPv6 header.
    let low = if bytes.len() > 44 && rng.random_bool(0.9) { 40 } else { 0 };
    let at = rng.random_range(low..bytes.len());
    let end = (at + rng.random_range(1..32)).min(bytes.len());
    match rng.random_range(0..9) {
        0 => bytes[at] ^= 1 << rng.random_range(0..8),
        1 => bytes[at] = rng.random(),
        2 => bytes[at] = [0, 1, 2, 3, 17, 25, 26, 0x7f, 0x80, 0xff][rng.random_range(0..10)],
        3 => bytes.truncate(at),
        4 => drop(bytes.drain(at..end)),
        5 => {
            // The same options once more.
            let piece = bytes[at..end].to_vec();
            bytes.splice(at..at, piece);
        }
        6 => {
            let other = &corpus[rng.random_range(0..corpus.len())];
            if other.len() > 40 {
                let from = rng.random_range(40..other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
        7 => {
            let value: u16 = [0, 1, 4, 8, 16, 255, 0xffff][rng.random_range(0..7)];
            if let Some(two) = bytes.get_mut(at..at + 2) {
                two.copy_from_slice(&value.to_be_bytes());
            }
        }
        _ => {
            let many = rng.random_range(1..40);
            let piece = bytes[at..end].to_vec();
            for _ in 0..many {
                bytes.extend_from_slice(&piece);
            }
        }
    }
}

/// Sets the length and checksum fields of an IPv6 packet with UDP or ICMPv6.
pub fn make_right(bytes: &mut [u8]) {
    if bytes.len() < 48 || bytes[0] >> 4 != 6 {
        return;
    }
    let length = u16::try_from(bytes.len() - 40).unwrap_or(u16::MAX);
    bytes[4..6].copy_from_slice(&length.to_be_bytes());
    let at = match bytes[6] {
        17 => {
            bytes[44..46].copy_from_slice(&length.to_be_bytes());
            46
        }
        58 => 42,
        _ => return,
    };
    bytes[at..at + 2].fill(0);
    let mut sum = u32::from(length) + u32::from(bytes[6]);
    for pair in bytes[8..].chunks(2) {
        let high = u32::from(pair[0]) << 8;
        sum += high + pair.get(1).map_or(0, |b| u32::from(*b));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = match !u16::try_from(sum).unwrap_or(0) {
        0 if bytes[6] == 17 => 0xffff,
        n => n,
    };
    bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}
