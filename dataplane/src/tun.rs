//! The TUN device: the AERO interface of the node.
//!
//! Packets come out of the kernel as super-packets where it has such, and go back into it merged:
//! one system call for up to 64 KiB instead of one for each packet. `tun-rs` does the cutting and
//! merging.

use std::io;
use std::os::fd::AsRawFd;

use tun_rs::{AsyncDevice, DeviceBuilder, GROTable, VIRTIO_NET_HDR_LEN};

/// Packets taken from the device at once, at most; more than that only if one super-packet is cut
/// into more.
const BATCH: usize = 64;
/// Into how many packets one super-packet may be cut.
const PIECES: usize = 512;
/// Largest packet, and largest super-packet.
const LARGEST: usize = 65_536;
/// Queues of the device, at most: flows are spread over them by the kernel.
const QUEUES: usize = 4;

/// An open TUN device.
pub struct Device {
    queues: Vec<AsyncDevice>,
    largest: usize,
}

/// The device without queues and super-packets, for who sends and receives one packet now and
/// then.
pub type PlainDevice = tun::AsyncDevice;

/// Packets from the device.
pub struct Packets {
    raw: Vec<u8>,
    buffers: Vec<Vec<u8>>,
    sizes: Vec<usize>,
    count: usize,
}

impl Packets {
    /// The packets of the last [`Device::receive`], in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let all = self.buffers.iter().zip(&self.sizes).take(self.count);
        all.filter_map(|(buffer, size)| buffer.get(..*size))
    }
}

/// Packets for the device, kept until [`Device::send`].
#[derive(Default)]
pub struct Outgoing {
    buffers: Vec<Vec<u8>>,
    count: usize,
    merging: GROTable,
}

impl Outgoing {
    /// Adds a packet.
    pub fn push(&mut self, packet: &[u8]) {
        if self.count == self.buffers.len() {
            self.buffers.push(Vec::with_capacity(LARGEST));
        }
        if let Some(buffer) = self.buffers.get_mut(self.count) {
            buffer.clear();
            // The kernel's header is written here.
            buffer.resize(VIRTIO_NET_HDR_LEN, 0);
            buffer.extend_from_slice(packet);
            self.count += 1;
        }
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl Device {
    /// How many queues there are.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Room for what is received.
    pub fn packets(&self) -> Packets {
        Packets {
            raw: vec![0; VIRTIO_NET_HDR_LEN + LARGEST],
            buffers: vec![vec![0; self.largest]; PIECES],
            sizes: vec![0; PIECES],
            count: 0,
        }
    }

    /// Waits for a packet on the n-th queue, and takes what else is there.
    ///
    /// # Errors
    /// If the device is gone.
    pub async fn receive(&self, n: usize, packets: &mut Packets) -> io::Result<()> {
        let device = self.queues.get(n).ok_or(io::ErrorKind::NotFound)?;
        packets.count = 0;
        let Packets { raw, buffers, sizes, count } = packets;
        loop {
            device.readable().await?;
            while *count < BATCH {
                let (Some(buffers), Some(sizes)) =
                    (buffers.get_mut(*count..), sizes.get_mut(*count..))
                else {
                    break;
                };
                match device.try_recv_multiple(raw, buffers, sizes, 0) {
                    Ok(more) => *count += more,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) if e.raw_os_error().is_some() => return Err(e),
                    // A packet that cannot be cut, from the node's own kernel: only that one is
                    // lost.
                    Err(e) => tracing::debug!("a packet of the TUN device is dropped: {e}"),
                }
            }
            if *count > 0 {
                return Ok(());
            }
        }
    }

    /// Hands packets to the node's network layer. Those of one flow are merged where they can be.
    ///
    /// # Errors
    /// If the device took none, or not all.
    pub async fn send(&self, n: usize, packets: &mut Outgoing) -> io::Result<()> {
        let device =
            self.queues.get(n % self.queues.len().max(1)).ok_or(io::ErrorKind::NotFound)?;
        let count = std::mem::take(&mut packets.count);
        let Some(buffers) = packets.buffers.get_mut(..count) else { return Ok(()) };
        device.send_multiple(&mut packets.merging, buffers, VIRTIO_NET_HDR_LEN).await.map(drop)
    }
}

fn needs(name: &str, why: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("the TUN device {name} (needs /dev/net/tun and CAP_NET_ADMIN): {why}"))
}

/// Opens the device, making it if it is not there. It stays when the process ends, so that the
/// routes to it outlive a restart.
///
/// The device is left down: the caller decides about IPv6 address generation first.
///
/// # Errors
/// Says what is needed, if the device cannot be made (no /dev/net/tun, no CAP_NET_ADMIN, the name
/// is taken).
pub fn open(name: &str, mtu: u16) -> io::Result<Device> {
    let build = |queues: bool| {
        let mut builder = DeviceBuilder::new().name(name).mtu(mtu).inherit_enable_state();
        builder = builder.offload(true).multi_queue(queues);
        builder.build_async()
    };
    // One that is there already may have been made with a single queue.
    let first = build(true).or_else(|_| build(false)).map_err(|e| needs(name, e))?;
    first.persist().map_err(|e| needs(name, e))?;
    let mut queues = vec![first];
    let wanted = std::thread::available_parallelism().map_or(1, |n| n.get().min(QUEUES));
    while queues.len() < wanted {
        match queues.first().map(AsyncDevice::try_clone) {
            Some(Ok(queue)) => queues.push(queue),
            _ => break,
        }
    }
    Ok(Device { queues, largest: usize::from(mtu).max(9216) })
}

/// The same for who needs no more than a packet now and then.
///
/// # Errors
/// As [`open`].
pub fn open_plain(name: &str, mtu: u16) -> io::Result<PlainDevice> {
    let make = || -> Result<PlainDevice, Box<dyn std::error::Error + Send + Sync>> {
        let mut config = tun::Configuration::default();
        config.tun_name(name).mtu(mtu);
        let mut device = tun::create(&config)?;
        // What an earlier process asked for holds for the device: super-packets.
        crate::message::set_tun_offload(device.as_raw_fd(), 0)?;
        device.persist()?;
        Ok(tun::AsyncDevice::new(device)?)
    };
    make().map_err(|e| needs(name, e))
}

/// Brings the device up.
///
/// # Errors
/// If the kernel refuses.
pub fn up(device: &Device) -> io::Result<()> {
    device.queues.first().map_or(Ok(()), |queue| queue.enabled(true))
}
