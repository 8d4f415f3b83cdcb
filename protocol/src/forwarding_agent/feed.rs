//! The feed of a Forwarding Agent: draft -48 section 3.12 leaves it to an out-of-band protocol
//! (NETCONF is named); ours is lines of JSON over any reliable, ordered stream between the two,
//! such as a Unix socket. `docs/forwarding-feed.md` describes it for programs of others.
//!
//! From the companion: `hello`, the whole state as `change`s, `synchronized`, then each change as
//! it happens and `alive` once a second. From the agent: `ready` when it is synchronized, and an
//! `alive` for each one that it hears. Times are told as what is left of them, in milliseconds,
//! since the two have no common clock.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::forwarding::{Change, NextHop, Route};

/// Version of the feed. Another one is refused.
pub const VERSION: u32 = 1;
/// Longest line that is read.
pub const MAX_LINE: usize = 1024;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Message {
    /// The companion begins (again): what the agent knows is only kept until `synchronized`.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// The companion's link-local address, which the agent takes as its own.
        identity: Ipv6Addr,
    },
    /// A change of the forwarding state.
    Change(FeedChange),
    /// What came since `hello` is all.
    Synchronized,
    /// The agent has applied all up to `synchronized`.
    Ready {
        /// [`VERSION`].
        version: u32,
    },
    /// A sign of life, and its echo.
    Alive {
        /// Counts up.
        number: u64,
    },
}

/// A [`Change`] as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
#[allow(missing_docs)] // they mirror `Change`
pub enum FeedChange {
    SetRoute { prefix: IpNet, to: Via, transit: bool, millis: Option<u64> },
    RemoveRoute { prefix: IpNet },
    AddPeer { peer: SocketAddr },
    AddRelay { peer: SocketAddr },
    AddAgent { peer: SocketAddr },
    RemovePeer { peer: SocketAddr },
    SetSource { prefix: IpNet, from: SocketAddr, millis: Option<u64> },
    AddSource { prefix: IpNet, from: SocketAddr, millis: Option<u64> },
    RemoveSource { prefix: IpNet },
    SetHandover { prefix: IpNet, from: SocketAddr, millis: u64 },
    SetDirect { source: IpNet, destination: IpNet, neighbor: SocketAddr, millis: u64 },
    RemoveDirect { source: IpNet, destination: IpNet },
}

/// A [`NextHop`] as it travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Via {
    Local,
    Neighbor(SocketAddr),
    Unreachable,
}

/// Why a line was not understood.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// Longer than [`MAX_LINE`].
    #[error("a line of {0} bytes, where at most {MAX_LINE} are read")]
    TooLong(usize),
    /// Not one of the messages.
    #[error("not a message of the feed: {0}")]
    Syntax(#[from] serde_json::Error),
    /// Another version.
    #[error("version {0} of the feed, where {VERSION} is spoken")]
    Version(u32),
    /// A message that this side sends and does not take, or at the wrong time.
    #[error("a message that does not belong here")]
    OutOfPlace,
}

impl Message {
    /// The line, without its line feed.
    ///
    /// # Errors
    /// Never for messages of this type; the encoder has the last word.
    pub fn to_line(&self) -> Result<String, FeedError> {
        Ok(serde_json::to_string(self)?)
    }

    /// Reads a line.
    ///
    /// # Errors
    /// If it is too long or none of the messages.
    pub fn of_line(line: &str) -> Result<Self, FeedError> {
        if line.len() > MAX_LINE {
            return Err(FeedError::TooLong(line.len()));
        }
        Ok(serde_json::from_str(line)?)
    }
}

impl FeedChange {
    /// A change as it is told now.
    pub fn of(change: &Change, now: Instant) -> Self {
        let left = |t: Instant| {
            u64::try_from(t.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX)
        };
        match *change {
            Change::SetRoute { prefix, route } => Self::SetRoute {
                prefix,
                to: match route.to {
                    NextHop::Local => Via::Local,
                    NextHop::Neighbor(l2) => Via::Neighbor(l2.into()),
                    // Servers hold nothing.
                    NextHop::Unreachable | NextHop::Hold { .. } => Via::Unreachable,
                },
                transit: route.transit,
                millis: route.until.map(left),
            },
            Change::RemoveRoute { prefix } => Self::RemoveRoute { prefix },
            Change::AddPeer(peer) => Self::AddPeer { peer: peer.into() },
            Change::AddRelay(peer) => Self::AddRelay { peer: peer.into() },
            Change::AddAgent(peer) => Self::AddAgent { peer: peer.into() },
            Change::RemovePeer(peer) => Self::RemovePeer { peer: peer.into() },
            Change::SetSource { prefix, from, until } => {
                Self::SetSource { prefix, from: from.into(), millis: until.map(left) }
            }
            Change::AddSource { prefix, from, until } => {
                Self::AddSource { prefix, from: from.into(), millis: until.map(left) }
            }
            Change::RemoveSource { prefix } => Self::RemoveSource { prefix },
            Change::SetHandover { prefix, from, until } => {
                Self::SetHandover { prefix, from: from.into(), millis: left(until) }
            }
            Change::SetDirect { source, destination, to, until } => {
                let (neighbor, millis) = (to.into(), left(until));
                Self::SetDirect { source, destination, neighbor, millis }
            }
            Change::RemoveDirect { source, destination } => {
                Self::RemoveDirect { source, destination }
            }
        }
    }

    /// The change as it is to be applied now.
    pub fn change(&self, now: Instant) -> Change {
        let at = |millis: u64| {
            let far = Duration::from_secs(366 * 24 * 3600);
            now + Duration::from_millis(millis).min(far)
        };
        match *self {
            Self::SetRoute { prefix, to, transit, millis } => {
                let to = match to {
                    Via::Local => NextHop::Local,
                    Via::Neighbor(l2) => NextHop::Neighbor(l2.into()),
                    Via::Unreachable => NextHop::Unreachable,
                };
                Change::SetRoute { prefix, route: Route { to, transit, until: millis.map(at) } }
            }
            Self::RemoveRoute { prefix } => Change::RemoveRoute { prefix },
            Self::AddPeer { peer } => Change::AddPeer(peer.into()),
            Self::AddRelay { peer } => Change::AddRelay(peer.into()),
            Self::AddAgent { peer } => Change::AddAgent(peer.into()),
            Self::RemovePeer { peer } => Change::RemovePeer(peer.into()),
            Self::SetSource { prefix, from, millis } => {
                Change::SetSource { prefix, from: from.into(), until: millis.map(at) }
            }
            Self::AddSource { prefix, from, millis } => {
                Change::AddSource { prefix, from: from.into(), until: millis.map(at) }
            }
            Self::RemoveSource { prefix } => Change::RemoveSource { prefix },
            Self::SetHandover { prefix, from, millis } => {
                Change::SetHandover { prefix, from: from.into(), until: at(millis) }
            }
            Self::SetDirect { source, destination, neighbor, millis } => {
                let (to, until) = (neighbor.into(), at(millis));
                Change::SetDirect { source, destination, to, until }
            }
            Self::RemoveDirect { source, destination } => {
                Change::RemoveDirect { source, destination }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::LinkLayerAddress;

    fn l2(s: &str) -> LinkLayerAddress {
        s.parse::<SocketAddr>().unwrap().into()
    }

    #[test]
    fn lines_look_as_the_documentation_says() {
        let now = Instant::now();
        let prefix = "2001:db8:0:1::/64".parse().unwrap();
        let route =
            Route { to: NextHop::Neighbor(l2("192.0.2.21:8061")), transit: true, until: None };
        let change = FeedChange::of(&Change::SetRoute { prefix, route }, now);
        let cases = [
            (
                Message::Hello { version: 1, identity: "fe80::2".parse().unwrap() },
                r#"{"type":"hello","version":1,"identity":"fe80::2"}"#,
            ),
            (
                Message::Change(change),
                r#"{"type":"change","change":"set-route","prefix":"2001:db8:0:1::/64","to":{"neighbor":"192.0.2.21:8061"},"transit":true,"millis":null}"#,
            ),
            (Message::Synchronized, r#"{"type":"synchronized"}"#),
            (Message::Ready { version: 1 }, r#"{"type":"ready","version":1}"#),
            (Message::Alive { number: 7 }, r#"{"type":"alive","number":7}"#),
        ];
        for (message, line) in cases {
            assert_eq!(message.to_line().unwrap(), line);
            assert_eq!(Message::of_line(line).unwrap(), message);
        }
    }

    #[test]
    fn every_change_survives_the_way_with_what_is_left_of_its_time() {
        let now = Instant::now();
        let until = now + Duration::from_secs(7);
        let prefix = "2001:db8:0:1::/64".parse().unwrap();
        let from = l2("[2001:db8:77::1]:8061");
        let route = |to| Change::SetRoute {
            prefix,
            route: Route { to, transit: false, until: Some(until) },
        };
        let all = [
            route(NextHop::Local),
            route(NextHop::Unreachable),
            route(NextHop::Neighbor(from)),
            Change::RemoveRoute { prefix },
            Change::AddPeer(from),
            Change::AddRelay(from),
            Change::AddAgent(from),
            Change::RemovePeer(from),
            Change::SetSource { prefix, from, until: Some(until) },
            Change::AddSource { prefix, from, until: None },
            Change::RemoveSource { prefix },
            Change::SetHandover { prefix, from, until },
            Change::SetDirect { source: prefix, destination: prefix, to: from, until },
            Change::RemoveDirect { source: prefix, destination: prefix },
        ];
        for change in all {
            let line = Message::Change(FeedChange::of(&change, now)).to_line().unwrap();
            assert!(line.len() < MAX_LINE);
            let Message::Change(read) = Message::of_line(&line).unwrap() else { panic!("{line}") };
            assert_eq!(read.change(now), change);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_the_reader_panic(line in ".{0,200}") {
            let _ = Message::of_line(&line);
        }
    }
}
