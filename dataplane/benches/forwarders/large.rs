//! A table of a million routes: how fast it fills, what it weighs, what it costs a packet.

use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use aero_dataplane::ForwardingTable;
use aero_protocol::address::LinkLayerAddress;
use aero_protocol::forwarding::{Change, NextHop, Route};
use anyhow::Context;
use aya::maps::MapData;
use ipnet::Ipv6Net;
use serde::Serialize;

use super::load::{self, Measure};
use super::topology::Path;

const ROUTES: u32 = 1_000_000;

/// What was seen.
#[derive(Debug, Serialize)]
pub struct Large {
    routes: u32,
    updates_per_second: f64,
    /// As the kernel accounts for it.
    bytes: u64,
    packets_per_second_before: f64,
    packets_per_second: f64,
}

fn median_rate(path: &Path) -> anyhow::Result<f64> {
    let mut rates = Vec::new();
    for _ in 0..3 {
        rates.extend(Measure::SmallPackets.take(path)?.into_iter().map(|(_, v)| v));
    }
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().context("nothing was measured")
}

fn weight(pin: &str) -> anyhow::Result<u64> {
    let map = MapData::from_pin(pin)?;
    let info =
        std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd()))?;
    let line = info.lines().find_map(|l| l.strip_prefix("memlock:")).context("no memlock")?;
    Ok(line.trim().parse()?)
}

/// Fills the table of the first node of an eBPF path.
pub fn measure(path: &Path) -> anyhow::Result<Large> {
    let (table, pin) = path.table().context("this path has no table in the kernel")?;
    load::warm_up(path)?;
    let packets_per_second_before = median_rate(path)?;
    let start = Instant::now();
    for n in 0..ROUTES {
        // In no order, as pods come and go.
        let scattered = n.wrapping_mul(2_654_435_761);
        let address = Ipv6Addr::from((0x2001_0db8_u128 << 96) | (u128::from(scattered) << 64));
        let to =
            LinkLayerAddress::new(Ipv6Addr::from(0xfd99_u128 << 112 | u128::from(n)).into(), 8061);
        table.apply(&Change::SetRoute {
            prefix: Ipv6Net::new(address, 64)?.into(),
            route: Route { to: NextHop::Neighbor(to), transit: true, until: None },
        });
    }
    let updates_per_second = f64::from(ROUTES) / start.elapsed().as_secs_f64();
    let bytes = weight(pin)?;
    let packets_per_second = median_rate(path)?;
    Ok(Large {
        routes: ROUTES,
        updates_per_second,
        bytes,
        packets_per_second_before,
        packets_per_second,
    })
}

impl Large {
    /// A sentence for people.
    pub fn sentence(&self) -> String {
        format!(
            "\nWith {} routes in one node's table: {:.0} MB in the kernel, filled at {:.0} updates \
             a second (applied to both forwarders); UDP 64 B packets {:.2} of the rate with three \
             routes.\n",
            self.routes,
            self.bytes as f64 / 1e6,
            self.updates_per_second,
            self.packets_per_second / self.packets_per_second_before,
        )
    }
}
