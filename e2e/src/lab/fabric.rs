//! Faults of the underlay: datagrams that the fabric between the nodes drops.
//!
//! The rules are in the fabric's namespace, on its bridge. So they hold whatever forwards on the
//! nodes, and nothing on a node knows of them. What stays on one node does not pass the fabric.

use anyhow::Context;

use super::Lab;
use super::process::run;

/// Every packet of one agent to another, in whatever form of tunnel: what goes straight.
pub const DIRECT_PATHS: &[&str] =
    &["udp sport 8061 udp dport 8061", "ip protocol ipv6", "ip6 nexthdr ipv6"];

/// All that agents tell each other without UDP.
pub const IP_IN_IP: &[&str] = &["ip protocol ipv6", "ip6 nexthdr ipv6"];

/// Unsolicited Neighbor Advertisements of Clients about themselves, by the outer UDP payload: an
/// inner packet (from bit 64 of the transport header) with next header 58 (bit 112) and a source
/// `fe80::2001:...` (bit 192), and in it ICMPv6 of type 136 (bit 384) with the flag O and not S
/// (bit 416).
pub const ADVERTISEMENTS_OF_MOVES: &[&str] =
    &["udp dport {8060, 8061} @th,112,8 58 @th,192,16 0x2001 @th,384,8 136 @th,416,8 0x20"];

/// A fault; it ends when it is dropped.
#[derive(Debug)]
pub struct Fault<'a> {
    lab: &'a Lab,
}

impl Lab {
    /// Drops what matches any of the expressions from now on. One fault at a time.
    ///
    /// # Errors
    /// With what `nft` printed.
    pub fn drop_in_fabric(&self, what: &[&str]) -> anyhow::Result<Fault<'_>> {
        let fault = Fault { lab: self };
        fault.nft("add table bridge fault")?;
        fault.nft("add chain bridge fault forward { type filter hook forward priority 0; }")?;
        for what in what {
            fault.nft(&format!("add rule bridge fault forward {what} counter drop"))?;
        }
        Ok(fault)
    }
}

impl Fault<'_> {
    fn nft(&self, command: &str) -> anyhow::Result<String> {
        run("ip", &["netns", "exec", &self.lab.scoped("fabric"), "nft", command])
    }

    /// How many packets were dropped so far.
    ///
    /// # Errors
    /// If the rule is gone.
    pub fn dropped(&self) -> anyhow::Result<u64> {
        let text = self.nft("list table bridge fault")?;
        let mut dropped = 0;
        for rest in text.split("counter packets ").skip(1) {
            let count = rest.split(' ').next().and_then(|n| n.parse::<u64>().ok());
            dropped += count.with_context(|| format!("no counter in {text}"))?;
        }
        Ok(dropped)
    }
}

impl Drop for Fault<'_> {
    fn drop(&mut self) {
        let _ = self.nft("delete table bridge fault");
    }
}
