//! Who may have which prefix: the claim against the shared table.

use std::fmt;

use ipnet::IpNet;

use super::{Fault, Request, Server};
use crate::address::Epoch;
use crate::wire::aero_options::Claim;

/// How a Server checks that a claim comes from the holder. A Client that has a
/// [key](Server::set_keys) has to sign besides, whatever is set here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Authentication {
    /// The outer source must be an underlay address of the holder's node. Right where the
    /// underlay does not let nodes forge their addresses.
    #[default]
    NodeAddress,
    /// No check; for interoperation tests only.
    None,
}

/// Why a claim is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The table has no prefix for this Client.
    Unknown,
    /// Nobody holds the prefix now.
    NotHeld(IpNet),
    /// The claim is of an epoch that is over.
    Outdated {
        /// The prefix.
        prefix: IpNet,
        /// The table's epoch.
        epoch: Epoch,
        /// Who holds it.
        holder: String,
    },
    /// The table has not seen that epoch, and did not within the time that a claim waits.
    NotYet {
        /// The prefix, if the table has one at all.
        prefix: Option<IpNet>,
        /// The epoch that was claimed.
        claimed: Epoch,
    },
    /// Another pod, or a pod on another node, holds it.
    HeldByOther {
        /// The prefix.
        prefix: IpNet,
        /// Who holds it.
        holder: String,
    },
    /// The Client has a key and the message does not prove that it is the Client's, or it has none
    /// here and the message is signed.
    Signature(Fault),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => write!(f, "no prefix is mapped to this client"),
            Self::NotHeld(p) => write!(f, "{p} has no holder"),
            Self::Outdated { prefix, epoch, holder } => {
                write!(f, "{prefix} is held by {holder} since epoch {epoch}; this claim is older")
            }
            Self::NotYet { prefix: Some(p), claimed } => {
                write!(f, "this Server's copy of {p} has not reached epoch {claimed}")
            }
            Self::NotYet { prefix: None, claimed } => {
                write!(f, "this Server has no mapping of this client, let alone epoch {claimed}")
            }
            Self::HeldByOther { prefix, holder } => write!(f, "{prefix} is held by {holder}"),
            Self::Signature(fault) => write!(f, "{fault}"),
        }
    }
}

/// The outcome.
pub(super) enum Decision {
    Grant(Vec<IpNet>),
    Wait(Refusal),
    Refuse(Refusal),
}

impl Server {
    pub(super) fn authorize(&self, request: &Request) -> Decision {
        let claim = request.message.claim();
        let prefixes = request.message.client.as_ref().and_then(|c| self.by_client.get(c));
        // It may have waited since before the Client had a key.
        let keyed = request.message.client.as_ref().is_some_and(|c| self.needs_signature(c));
        if keyed && request.signed.is_none() {
            return Decision::Refuse(Refusal::Signature(Fault::Missing));
        }
        let Some(prefixes) = prefixes else {
            return match claim {
                Some(c) => Decision::Wait(Refusal::NotYet { prefix: None, claimed: c.epoch }),
                None => Decision::Refuse(Refusal::Unknown),
            };
        };
        for prefix in prefixes {
            match self.check(*prefix, claim, request) {
                None => {}
                Some(r @ Refusal::NotYet { .. }) => return Decision::Wait(r),
                Some(r) => return Decision::Refuse(r),
            }
        }
        Decision::Grant(prefixes.iter().copied().collect())
    }

    fn check(&self, prefix: IpNet, claim: Option<Claim>, request: &Request) -> Option<Refusal> {
        let mapping = self.mappings.get(&prefix)?;
        if let Some(c) = claim
            && c.epoch > mapping.epoch
        {
            return Some(Refusal::NotYet { prefix: Some(prefix), claimed: c.epoch });
        }
        // A key proves by itself who asks; where a holder is named, its place is checked too.
        let proved = request.signed.is_some() && mapping.holder.is_none();
        let believed = self.config.authentication == Authentication::None || proved;
        if believed && claim.is_none() {
            return None;
        }
        let Some(holder) = &mapping.holder else {
            return Some(Refusal::NotHeld(prefix));
        };
        let name = || holder.name.clone();
        if let Some(c) = claim {
            if c.epoch < mapping.epoch {
                return Some(Refusal::Outdated { prefix, epoch: mapping.epoch, holder: name() });
            }
            if c.holder != holder.id {
                return Some(Refusal::HeldByOther { prefix, holder: name() });
            }
        }
        let from_its_node = holder.underlay.contains(&request.from.ip);
        if self.config.authentication == Authentication::NodeAddress && !from_its_node {
            return Some(Refusal::HeldByOther { prefix, holder: name() });
        }
        None
    }
}
