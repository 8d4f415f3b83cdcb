//! What several kinds share.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

/// Names the AeroLink that an object belongs to.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct LinkRef {
    /// Name of the AeroLink.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

impl Default for LinkRef {
    fn default() -> Self {
        Self { name: "default".into() }
    }
}

/// Schema of a list of `metav1.Condition`: one per type, merged by type.
pub(crate) fn conditions_schema(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = Vec::<Condition>::json_schema(generator);
    schema.insert("x-kubernetes-list-type".into(), "map".into());
    schema.insert("x-kubernetes-list-map-keys".into(), serde_json::json!(["type"]));
    schema
}

/// Builds a condition. `reason` is one CamelCase word, `message` a sentence for people.
pub fn condition(
    type_: &str,
    status: bool,
    reason: &str,
    message: impl Into<String>,
    generation: Option<i64>,
    now: Time,
) -> Condition {
    Condition {
        type_: type_.into(),
        status: if status { "True" } else { "False" }.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: generation,
        last_transition_time: now,
    }
}

/// Puts a condition into a list; the time of the last transition stays unless the status
/// changes.
pub fn set_condition(list: &mut Vec<Condition>, mut new: Condition) {
    match list.iter_mut().find(|c| c.type_ == new.type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
        None => list.push(new),
    }
}

/// Whether a condition is there and true.
pub fn is_true(list: &[Condition], type_: &str) -> bool {
    list.iter().any(|c| c.type_ == type_ && c.status == "True")
}

/// Reads a duration such as `24h`, `90m`, `1h30m` or `180s`, as the CRDs allow it.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut total = 0u64;
    let mut number = String::new();
    for c in text.chars() {
        if c.is_ascii_digit() {
            number.push(c);
            continue;
        }
        let unit = match c {
            'd' => 86_400,
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        let n: u64 = number.parse().ok()?;
        total = total.checked_add(n.checked_mul(unit)?)?;
        number.clear();
    }
    (number.is_empty() && !text.is_empty()).then(|| Duration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_row_of_numbers_with_units() {
        let seconds = |s: &str| parse_duration(s).map(|d| d.as_secs());
        assert_eq!(seconds("24h"), Some(86_400));
        assert_eq!(seconds("1h30m"), Some(5400));
        assert_eq!(seconds("0s"), Some(0));
        for bad in ["", "5", "h", "-1s", "1.5h", "99999999999999999999h"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_condition_keeps_its_transition_time_while_its_status_stays() {
        let early = Time("2026-01-01T00:00:00Z".parse().unwrap());
        let late = Time("2026-01-02T00:00:00Z".parse().unwrap());
        let mut list = vec![condition("Ready", false, "A", "a", Some(1), early.clone())];
        set_condition(&mut list, condition("Ready", false, "B", "b", Some(2), late.clone()));
        assert_eq!(list[0].last_transition_time, early);
        assert_eq!(list[0].reason, "B");
        set_condition(&mut list, condition("Ready", true, "C", "c", Some(2), late.clone()));
        assert_eq!(list[0].last_transition_time, late);
        assert!(is_true(&list, "Ready"));
    }
}
