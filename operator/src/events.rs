//! Events of Kubernetes: what the operator did or saw, told where a user looks first.
//!
//! | reason | on | when |
//! | --- | --- | --- |
//! | `Delegated` | AeroClient, pod | an identity gets its prefix |
//! | `Moved` | AeroClient, pod | it keeps the prefix in another pod |
//! | `Conflict` | AeroClient, pod | the prefix is another's, or the pod another AeroClient's |
//! | `Rejected` | AeroClient, pod | the prefix cannot be given for another reason |
//! | `Released` | AeroClient, AcpMapping | the holder is gone, or the prefix was given up |
//! | `ServerLost` | AeroServer | a Server stopped serving that was not told to |
//! | `ServerLeft`, `ServersServe` | AeroServer | one was told to stop; all serve again |
//! | `RelayLost`, `RelayLeft`, `RelaysServe` | AeroRelay | the same of Relays |
//! | `RelayNotFound` | AeroServer | `relayRefs` names what is no AeroRelay of the link |
//! | `AsnConflict`, `AsnNotPrivate` | AeroServer, AeroRelay | AS numbers that cannot be had |
//! | `PeerRefused` | AeroServer, AeroRelay | an external peer that cannot be; a peer of a wrong AS |
//! | `RoutesRefused` | AeroRelay | a peer announces what is not taken from it |
//!
//! Agents tell of `Rejected` (on a pod that a Server refuses) and `ServerLost` (on their Node).

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType};

use crate::context::Context;

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// CamelCase.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// Warning instead of Normal.
    pub warning: bool,
}

impl Note {
    /// Nothing to worry about.
    pub fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), warning: false }
    }

    /// Something that needs attention.
    pub fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), warning: true }
    }
}

/// The Event's reason for a refusal: somebody else has it, or it cannot be had at all.
pub fn reason_of_refusal(refusal: &str) -> &'static str {
    match refusal {
        "PrefixHeld" | "PrefixTwice" | "PodTaken" => "Conflict",
        _ => "Rejected",
    }
}

/// Writes an Event about each object.
pub async fn publish(ctx: &Context, note: &Note, about: &[ObjectReference]) {
    let event = Event {
        type_: if note.warning { EventType::Warning } else { EventType::Normal },
        reason: note.reason.into(),
        note: Some(note.message.clone()),
        // The recorder takes two Events of one action for one, whatever their words.
        action: note.message.chars().take(128).collect(),
        secondary: None,
    };
    for reference in about {
        if let Err(e) = ctx.recorder.publish(&event, reference).await {
            tracing::warn!("an Event cannot be written: {e}");
        }
    }
}
