//! Which fault cases (docs/faults.md) a test on the lab's Kubernetes has shown.

use aero_elements::faults::{Level, held_in};

/// Claims cases for `test`, which has got to its end; the log of the run must say so too.
pub fn shown(test: &str, ids: &[&str], figure: String) {
    let mut case = held_in(test, ids, Level::Kubernetes);
    case.figure(figure);
}
