//! What the BIRDs of pods report of their sessions, and what follows.

use std::sync::Arc;

use aero_crds::bgp::{BgpSession, REPORT_KEY, report_name};
use aero_crds::condition;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;

use crate::context::Context;
use crate::events::Note;

/// A peer is not who it is said to be; nothing is taken from it.
pub const PEER_REFUSED: &str = "PeerRefused";
/// A peer announces what is not its own; that is not taken.
pub const ROUTES_REFUSED: &str = "RoutesRefused";
/// Peers that are named in a sentence.
const NAMED: usize = 4;

/// The sessions of these pods, of those that go on.
pub fn of_pods(ctx: &Context, pods: &[Arc<Pod>]) -> Vec<BgpSession> {
    let mut all = Vec::new();
    for pod in pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none()) {
        let name = report_name(&pod.name_any());
        let report = ctx.config_maps.state().into_iter().find(|m| m.name_any() == name);
        let text = report.as_ref().and_then(|m| m.data.as_ref()?.get(REPORT_KEY));
        let sessions = text.and_then(|t| serde_json::from_str::<Vec<BgpSession>>(t).ok());
        for session in sessions.into_iter().flatten() {
            all.push(BgpSession { pod: Some(pod.name_any()), ..session });
        }
    }
    all.sort_by(|a, b| (&a.pod, &a.peer).cmp(&(&b.pod, &b.peer)));
    all
}

fn joined(mut all: Vec<String>) -> String {
    all.sort();
    all.dedup();
    let more = all.len().saturating_sub(NAMED);
    all.truncate(NAMED);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{rest}", all.join(", "))
}

/// Whether a peer is in another AS than is said.
fn is_wrong(session: &BgpSession) -> bool {
    !session.is_established() && session.error.as_ref().is_some_and(|e| e.ends_with("Bad peer AS"))
}

fn announces(session: &BgpSession) -> bool {
    !session.refused.is_empty()
}

/// What people are told of the sessions that are bad in one way, if there are any.
fn told(sessions: &[BgpSession], reason: &str) -> Option<String> {
    let bad = |is: fn(&BgpSession) -> bool, say: fn(&BgpSession) -> String| {
        let all: Vec<String> = sessions.iter().filter(|s| is(s)).map(say).collect();
        (!all.is_empty()).then(|| joined(all))
    };
    if reason == PEER_REFUSED {
        let all = bad(is_wrong, |s| {
            format!("{} (AS {} is expected)", s.peer, s.peer_asn.unwrap_or_default())
        });
        return all.map(|all| format!("Bad peer AS, nothing is taken or told: {all}"));
    }
    let all = bad(announces, |s| format!("{} announces {}", s.peer, s.refused.join(" ")));
    all.map(|all| format!("routes are not taken: {all}"))
}

/// What there is to tell when peers have become bad that were not. A peer that stays so is told of
/// once, whatever it announces meanwhile.
pub fn trouble(before: &[BgpSession], now: &[BgpSession]) -> Vec<Note> {
    let new = |is: fn(&BgpSession) -> bool| {
        let was = |peer: &str| before.iter().any(|s| s.peer == peer && is(s));
        now.iter().any(|s| is(s) && !was(&s.peer))
    };
    [(PEER_REFUSED, new(is_wrong)), (ROUTES_REFUSED, new(announces))]
        .into_iter()
        .filter(|(_, new)| *new)
        .filter_map(|(reason, _)| Some(Note::warning(reason, told(now, reason)?)))
        .collect()
}

/// The condition `SessionsHealthy`.
pub fn condition_of(sessions: &[BgpSession], generation: Option<i64>, now: &Time) -> Condition {
    let down: Vec<&BgpSession> = sessions.iter().filter(|s| !s.is_established()).collect();
    let (ok, reason, message) = if let Some(text) = told(sessions, PEER_REFUSED) {
        (false, PEER_REFUSED, text)
    } else if let Some(text) = told(sessions, ROUTES_REFUSED) {
        (false, ROUTES_REFUSED, text)
    } else if !down.is_empty() {
        let peers = down.iter().map(|s| s.peer.clone()).collect();
        let text =
            format!("{} of {} sessions are down: {}", down.len(), sessions.len(), joined(peers));
        (false, "SessionsDown", text)
    } else if sessions.is_empty() {
        (false, "NoSessions", "no BGP session is reported yet".to_string())
    } else {
        (true, "AllEstablished", format!("{} sessions", sessions.len()))
    };
    condition("SessionsHealthy", ok, reason, message, generation, now.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_what_peers_do_is_said_and_names_them() {
        let at = Time("2026-01-01T00:00:00Z".parse().unwrap());
        let of = |sessions: &[BgpSession]| condition_of(sessions, None, &at);
        assert_eq!(of(&[]).reason, "NoSessions");
        let up = BgpSession {
            peer: "fe80::1".into(),
            state: "Established".into(),
            ..BgpSession::default()
        };
        assert_eq!(of(std::slice::from_ref(&up)).status, "True");
        let down = BgpSession { peer: "fe80::2".into(), state: "Down".into(), ..up.clone() };
        let c = of(&[up.clone(), down.clone()]);
        assert_eq!(
            (c.reason.as_str(), c.message.as_str()),
            ("SessionsDown", "1 of 2 sessions are down: fe80::2")
        );
        let greedy = BgpSession {
            peer: "192.0.2.99".into(),
            refused: vec!["2001:db8:a::/48".into(), "::/0".into()],
            ..up.clone()
        };
        let c = of(&[up.clone(), down.clone(), greedy.clone()]);
        assert_eq!(c.reason, "RoutesRefused");
        assert!(c.message.contains("192.0.2.99 announces 2001:db8:a::/48 ::/0"), "{}", c.message);
        let wrong = BgpSession {
            error: Some("BGP Error: Bad peer AS".into()),
            peer_asn: Some(65_000),
            ..down
        };
        let c = of(&[up, wrong, greedy]);
        assert_eq!(c.reason, "PeerRefused");
        assert!(c.message.contains("fe80::2 (AS 65000 is expected)"), "{}", c.message);
    }
    #[test]
    fn a_peer_that_has_become_bad_is_told_of_once_whatever_else_is_bad() {
        let good = BgpSession {
            peer: "2001:db8:77::61".into(),
            peer_asn: Some(65_000),
            state: "Established".into(),
            ..BgpSession::default()
        };
        let reasons = |before: &[BgpSession], now: &[BgpSession]| -> Vec<(&str, bool)> {
            trouble(before, now).iter().map(|n| (n.reason, n.warning)).collect()
        };
        assert_eq!(reasons(&[], std::slice::from_ref(&good)), []);
        let wrong = BgpSession {
            state: "Down".into(),
            error: Some("BGP Error: Bad peer AS".into()),
            ..good.clone()
        };
        let news = trouble(std::slice::from_ref(&good), std::slice::from_ref(&wrong));
        assert_eq!(news[0].reason, PEER_REFUSED);
        assert!(news[0].message.contains("2001:db8:77::61 (AS 65000"), "{}", news[0].message);
        assert_eq!(reasons(std::slice::from_ref(&wrong), std::slice::from_ref(&wrong)), []);
        // The condition has room for one reason, the Events have not.
        let greedy = |what: &str| BgpSession {
            peer: "2001:db8:77::62".into(),
            refused: vec![what.into()],
            ..good.clone()
        };
        let (one, other) = (greedy("::/0"), greedy("2001:db8:a::/48"));
        assert_eq!(
            reasons(std::slice::from_ref(&wrong), &[wrong.clone(), one.clone()]),
            [(ROUTES_REFUSED, true)]
        );
        assert_eq!(reasons(&[wrong.clone(), one.clone()], std::slice::from_ref(&other)), []);
        // The same peer of another Relay is no other peer; and one that was good is told of again.
        let elsewhere = BgpSession { pod: Some("r-2".into()), ..wrong.clone() };
        assert_eq!(reasons(std::slice::from_ref(&wrong), &[wrong.clone(), elsewhere]), []);
        assert_eq!(reasons(&[good, one], &[wrong, other]), [(PEER_REFUSED, true)]);
    }
}
