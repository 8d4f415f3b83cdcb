//! What the programs have to know of this node, and whether it can have them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{if_indextoname, if_nametoindex};
use nix::sys::socket::SockaddrStorage;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::layout::Config;
use super::{Options, Unavailable};

/// Types of devices with an Ethernet header (`linux/if_arp.h`).
const ARPHRD_ETHER: u16 = 1;
const ARPHRD_LOOPBACK: u16 = 772;

/// Pins need a BPF file system at the root or at one of the directories above it.
pub(super) fn require_bpffs(root: &Path) -> Result<(), Unavailable> {
    let there = root.ancestors().find(|p| p.exists());
    match there.map(statfs) {
        Some(Ok(fs)) if fs.filesystem_type() == BPF_FS_MAGIC => Ok(()),
        _ => Err(Unavailable::NoFileSystem { path: root.to_path_buf() }),
    }
}

pub(super) fn index_of(device: &str) -> nix::Result<u32> {
    if_nametoindex(device)
}

pub(super) fn name_of(index: u32) -> Option<String> {
    if_indextoname(index).ok()?.into_string().ok()
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
}

/// All devices.
pub(super) fn devices() -> BTreeSet<String> {
    getifaddrs().into_iter().flatten().map(|i| i.interface_name).collect()
}

/// The device that has an address.
fn device_of(address: IpAddr) -> Result<String, Unavailable> {
    let mut all = getifaddrs().into_iter().flatten();
    let found = all.find(|i| i.address.as_ref().and_then(ip) == Some(address));
    found.map(|i| i.interface_name).ok_or(Unavailable::NoDevice(address))
}

fn require_ethernet(device: &str) -> Result<(), Unavailable> {
    let mut links = getifaddrs().into_iter().flatten().filter(|i| i.interface_name == device);
    let ethernet = links.any(|i| {
        let link = i.address.as_ref().and_then(SockaddrStorage::as_link_addr);
        link.is_some_and(|l| [ARPHRD_ETHER, ARPHRD_LOOPBACK].contains(&l.hatype()))
    });
    if ethernet { Ok(()) } else { Err(Unavailable::NotEthernet { device: device.into() }) }
}

fn index(device: &str) -> Result<u32, Unavailable> {
    index_of(device).map_err(|e| Unavailable::Kernel {
        what: "looking for an interface",
        why: format!("{device}: {e}"),
    })
}

/// The programs' configuration, and the devices of the underlay.
pub(super) fn configuration(options: &Options) -> Result<(Config, BTreeSet<String>), Unavailable> {
    let mut config = Config {
        v4: None,
        v6: None,
        port: options.port,
        device: options.device.as_deref().map_or(Ok(0), index)?,
        mtu: options.mtu,
        ttl_step: options.ttl_step,
        tells: false,
        ip_in_ip: false,
        table: super::layout::next_table(0),
        until: options.outlives.map(|t| std::time::Instant::now() + t),
    };
    let mut devices = BTreeSet::new();
    for address in &options.addresses {
        let known = if address.is_ipv4() { config.v4.is_some() } else { config.v6.is_some() };
        if known {
            continue;
        }
        let device = device_of(*address)?;
        require_ethernet(&device)?;
        set(&mut config, *address, index(&device)?);
        devices.insert(device);
    }
    Ok((config, devices))
}

fn set(config: &mut Config, address: IpAddr, device: u32) {
    match address {
        IpAddr::V4(a) => config.v4 = Some((Ipv4Addr::from(a.octets()), device)),
        IpAddr::V6(a) => config.v6 = Some((Ipv6Addr::from(a.octets()), device)),
    }
}
