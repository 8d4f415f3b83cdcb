//! The operator, whole, against a model of the API server: its caches, its rounds, its garbage
//! collection and its client run as they are; time is virtual; chance comes from one seed.
//!
//! A failing history prints its seed and what happened. `AERO_MODEL_SEEDS=17` (or `0..1000`) runs
//! those instead of the usual ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod check;
mod churn;
mod crash_points;
mod driver;
mod faults;
mod gates;
mod histories;
mod memory;
mod overlaps;
mod sandboxes;
mod scale;
mod server;
mod store;
mod world;
