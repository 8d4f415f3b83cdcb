//! Conditions in the form of `metav1.Condition`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// Builds a condition; `now` is its time of transition unless [`set_condition`] finds an older one.
#[must_use]
pub fn condition(
    type_: &str,
    status: bool,
    reason: &str,
    message: impl Into<String>,
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: message.into(),
        observed_generation: generation,
        last_transition_time: Time(now),
    }
}

/// Puts a condition into a list, keeping the time of transition while the status stays the same.
pub fn set_condition(conditions: &mut Vec<Condition>, mut new: Condition) {
    match conditions.iter_mut().find(|old| old.type_ == new.type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let (t0, t1) = (Timestamp::UNIX_EPOCH, Timestamp::from_second(60).unwrap());
        let mut list = vec![condition("Ready", false, "A", "a", Some(1), t0)];
        set_condition(&mut list, condition("Ready", false, "B", "b", Some(2), t1));
        assert_eq!((list[0].reason.as_str(), list[0].last_transition_time.0), ("B", t0));
        set_condition(&mut list, condition("Ready", true, "C", "c", Some(2), t1));
        assert_eq!((list.len(), list[0].last_transition_time.0), (1, t1));
    }
}
