//! A Relay's ACP routes: draft -48 section 3.2, 3.5. They are set from outside; BGP (or a file)
//! tells which Servers announce which ACP.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::address::ServerId;

/// Which Servers announce which ACP.
///
/// Several may, during a hand-over or since a Client holds leases at all of them; the one that
/// announced last is the best, as its lease is the youngest.
#[derive(Debug, Clone, Default)]
pub(super) struct Routes {
    /// Announcing Servers of an ACP, the newest last.
    paths: BTreeMap<IpNet, Vec<ServerId>>,
}

impl Routes {
    /// Adds a path, or makes it the newest.
    pub(super) fn add(&mut self, acp: IpNet, server: ServerId) {
        let list = self.paths.entry(acp).or_default();
        list.retain(|s| *s != server);
        list.push(server);
    }

    pub(super) fn remove(&mut self, acp: IpNet, server: ServerId) {
        if let Some(list) = self.paths.get_mut(&acp) {
            list.retain(|s| *s != server);
            if list.is_empty() {
                self.paths.remove(&acp);
            }
        }
    }

    /// The newest announcer that `usable` accepts.
    pub(super) fn best(&self, acp: IpNet, usable: impl Fn(ServerId) -> bool) -> Option<ServerId> {
        self.paths.get(&acp)?.iter().rev().copied().find(|s| usable(*s))
    }

    /// All ACPs that a Server announces.
    pub(super) fn of(&self, server: ServerId) -> Vec<IpNet> {
        self.paths.iter().filter(|(_, l)| l.contains(&server)).map(|(acp, _)| *acp).collect()
    }

    /// All ACPs with their announcers, the newest last.
    pub(super) fn iter(&self) -> impl Iterator<Item = (IpNet, &[ServerId])> {
        self.paths.iter().map(|(acp, list)| (*acp, &**list))
    }

    pub(super) fn len(&self) -> usize {
        self.paths.len()
    }
}
