//! The TUN device: the AERO interface of the node.

use std::io;

use tun::AbstractDevice;

/// An open TUN device.
pub type Device = tun::AsyncDevice;

/// Opens the device, making it if it is not there. It stays when the process ends, so that the
/// routes to it outlive a restart.
///
/// The device is left down: the caller decides about IPv6 address generation first.
///
/// # Errors
/// Says what is needed, if the device cannot be made (no /dev/net/tun, no CAP_NET_ADMIN, the name
/// is taken).
pub fn open(name: &str, mtu: u16) -> io::Result<Device> {
    let make = || -> Result<Device, Box<dyn std::error::Error + Send + Sync>> {
        let mut config = tun::Configuration::default();
        config.tun_name(name).mtu(mtu);
        let mut device = tun::create(&config)?;
        device.persist()?;
        Ok(tun::AsyncDevice::new(device)?)
    };
    make().map_err(|e| {
        io::Error::other(format!(
            "the TUN device {name} (needs /dev/net/tun and CAP_NET_ADMIN): {e}"
        ))
    })
}

/// Brings the device up.
///
/// # Errors
/// If the kernel refuses.
pub fn up(device: &mut tun::AsyncDevice) -> io::Result<()> {
    device.enabled(true).map_err(io::Error::other)
}
