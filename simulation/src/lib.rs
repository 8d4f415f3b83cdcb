//! Whole AERO links in virtual time: every engine of the `protocol` crate, a network that loses,
//! delays, reorders and duplicates, and nodes, Servers and watches that fail.
//!
//! A run is a function of its seed ([`scenario`]): events wait in one queue ([`queue`]), each
//! engine reads a clock of its own that is off and drifts ([`clock`]), and all randomness comes
//! from the seed. So two runs of a seed have the same trace, byte for byte ([`trace`]).
//!
//! [`world`] has the members and hands them packets and time; [`network`] is the underlay;
//! [`authority`] plays the operator (the shared table and each Server's watch of it) and the
//! nodes' kubelets; [`faults`] is what goes wrong; [`traffic`] sends users' packets through the
//! forwarding tables hop by hop; [`checks`] are the invariants; [`report`] and [`plot`] what is
//! written.

#![forbid(unsafe_code)]
// Members and clients are numbered from zero and never go away; an index that is out of range is
// a mistake in the simulation, and is to end it.
#![allow(clippy::indexing_slicing)]

pub mod authority;
pub mod checks;
pub mod clock;
pub mod faults;
pub mod member;
pub mod network;
pub mod plot;
pub mod queue;
pub mod report;
pub mod scenario;
pub mod trace;
pub mod traffic;
pub mod world;

pub use scenario::{Outcome, Shape, run};
