//! A fuzzer for the stable toolchain: mutated packets for the parsers, and random histories of
//! packets and local events for the engines.
//!
//! An input is a seed: it decides which packet of the corpus is taken ([`corpus`]), how it is
//! mutated and whether its lengths and checksums are made right again ([`mutate`]), and in which
//! history ([`engines`]) it is used. A failure names its seed; `aero-fuzz --seed N` runs it alone.
//! A failure is a panic: either the code's own, or that of an assertion here about what must hold.

#![forbid(unsafe_code)]
// A fuzzer fails by panicking.
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

pub mod corpus;
pub mod engines;
pub mod mutate;
pub mod parsers;
pub mod tunnel;

use rand::SeedableRng;
use rand::rngs::StdRng;

/// What is attacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Every parser, with one packet.
    Parsers,
    /// A Server, with a history.
    Server,
    /// A node with Clients, with a history.
    Node,
    /// A Relay, with a history.
    Relay,
    /// Reassembly of tunnel fragments.
    Reassembly,
}

impl Target {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Parsers, Self::Server, Self::Node, Self::Relay, Self::Reassembly];
}

/// Runs one seed against its target.
///
/// # Panics
/// If something is wrong.
pub fn run(target: Target, seed: u64, corpus: &[Vec<u8>]) {
    let mut rng = StdRng::seed_from_u64(seed);
    match target {
        Target::Parsers => {
            for _ in 0..64 {
                parsers::check(&mutate::packet(corpus, &mut rng));
            }
        }
        Target::Server => engines::server(corpus, &mut rng),
        Target::Node => engines::node(corpus, &mut rng),
        Target::Relay => engines::relay(corpus, &mut rng),
        Target::Reassembly => tunnel::reassembly(&mut rng),
    }
}
