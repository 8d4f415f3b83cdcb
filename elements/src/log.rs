//! What a log of `cargo test` says about each test.

use std::collections::BTreeMap;

/// The outcome of one test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It passed.
    Ok,
    /// It failed, was ignored, or the log does not say.
    Other,
}

/// Outcomes by binary (file name, hash included) and test.
pub type Outcomes = BTreeMap<(String, String), Outcome>;

/// Reads a log with both standard output and standard error in it. A test that is there twice
/// must have passed both times.
pub fn parse(log: &str) -> Outcomes {
    let mut outcomes = Outcomes::new();
    let mut binary = String::new();
    for line in log.lines() {
        let line = line.trim_start();
        if line.starts_with("Running ")
            && let Some((_, path)) = line.rsplit_once('(')
        {
            let path = path.trim_end().trim_end_matches(')');
            binary = path.rsplit('/').next().unwrap_or(path).to_string();
        } else if let Some((name, result)) =
            line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "))
        {
            let outcome = if result.trim() == "ok" { Outcome::Ok } else { Outcome::Other };
            let key = (binary.clone(), name.trim().to_string());
            let entry = outcomes.entry(key).or_insert(outcome);
            if outcome == Outcome::Other {
                *entry = outcome;
            }
        }
    }
    outcomes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_counts_as_passed_only_if_its_own_binary_said_so() {
        let log = "   Compiling x v0.1.0\n     Running unittests src/lib.rs (target/debug/deps/a-12)\n\n\
                   running 2 tests\ntest one ... ok\ntest two ... FAILED\n\
                   \x20    Running tests/b.rs (target/debug/deps/b-34)\ntest two ... ok\n\
                   test three ... ignored\ntest result: ok. 1 passed\n";
        let outcomes = parse(log);
        let get = |b: &str, t: &str| outcomes.get(&(b.to_string(), t.to_string())).copied();
        assert_eq!(get("a-12", "one"), Some(Outcome::Ok));
        assert_eq!(get("a-12", "two"), Some(Outcome::Other));
        assert_eq!(get("b-34", "two"), Some(Outcome::Ok));
        assert_eq!(get("b-34", "three"), Some(Outcome::Other));
        assert_eq!(get("b-34", "one"), None);
    }
}
