//! Durations as users write them: `24h`, `1h30m`, `180s`.

use std::time::Duration;

/// How long an unused prefix is kept for its identity when the AeroClient does not say.
pub const DEFAULT_KEEP_FOR: Duration = Duration::from_secs(24 * 3600);
/// How long a given-up prefix stays out of use when the AeroClient does not say.
pub const DEFAULT_COOL_DOWN: Duration = Duration::from_secs(180);

/// CEL rule that a duration string obeys; the same language as [`parse_duration`].
pub(crate) const RULE: &str = "self.matches('^([0-9]{1,9}(ms|s|m|h|d))+$')";
/// What the API server says when [`RULE`] is broken.
pub(crate) const MESSAGE: &str = "must be a duration such as 24h, 1h30m, 180s or 7d";

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no duration: expected numbers with units ms, s, m, h or d, such as 1h30m")]
pub struct DurationError(String);

/// Parses a duration: numbers, each followed by `ms`, `s`, `m`, `h` or `d`.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let error = || DurationError(text.to_owned());
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(error());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| error())?;
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let part = match unit {
            "ms" => Some(Duration::from_millis(number)),
            "s" => Some(Duration::from_secs(number)),
            "m" => number.checked_mul(60).map(Duration::from_secs),
            "h" => number.checked_mul(3600).map(Duration::from_secs),
            "d" => number.checked_mul(86_400).map(Duration::from_secs),
            _ => None,
        };
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(error)?;
        rest = tail;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_sums_of_numbers_with_units() {
        for (text, seconds) in
            [("24h", 86_400), ("1h30m", 5_400), ("180s", 180), ("7d", 604_800), ("0s", 0)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(parse_duration("1s500ms"), Ok(Duration::from_millis(1500)));
    }

    #[test]
    fn anything_else_is_refused_with_the_text_that_was_found() {
        for text in ["", "5", "h", "5x", "-1s", "1 h", "1h ", "99999999999999999999s"] {
            let error = parse_duration(text).unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
