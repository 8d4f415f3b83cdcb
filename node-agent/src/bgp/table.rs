//! A kernel route table that is shared with a BGP daemon: written, read and watched by netlink.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Context as _;
use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::proto::sys::{AsyncSocket, SocketAddr};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::task::JoinHandle;

use crate::attach::ROUTE_PROTOCOL;

/// Requests to the kernel that are under way at a time.
const CONCURRENT: usize = 64;
/// Room for notifications that have not been read yet, in bytes.
const RECEIVE_BUFFER: usize = 64 << 20;

/// A route as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where to.
    pub prefix: IpNet,
    /// By which neighbours of the link.
    pub gateways: Vec<Ipv6Addr>,
    /// Who wrote it.
    pub protocol: u8,
}

/// The table.
#[derive(Debug)]
pub struct Table {
    id: u32,
    handle: Handle,
    task: JoinHandle<()>,
}

impl Drop for Table {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Table {
    /// The table of this number in the namespace of this process.
    ///
    /// # Errors
    /// If there is no netlink socket to be had.
    pub fn open(id: u32) -> std::io::Result<Self> {
        // Strict, so that a dump is of this table and not of all.
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        Ok(Self { id, handle, task: tokio::spawn(connection) })
    }

    /// All routes in it, whoever wrote them.
    ///
    /// # Errors
    /// As the kernel says.
    pub async fn list(&self) -> anyhow::Result<Vec<Found>> {
        let mut all = Vec::new();
        for family in [AddressFamily::Inet6, AddressFamily::Inet] {
            let mut query = RouteMessage::default();
            query.header.address_family = family;
            query.attributes.push(RouteAttribute::Table(self.id));
            let mut found = self.handle.route().get(query).execute();
            loop {
                match found.try_next().await {
                    Ok(Some(message)) => all.extend(self.of(&message)),
                    Ok(None) => break,
                    // Nobody has ever written to the table.
                    Err(rtnetlink::Error::NetlinkError(e))
                        if e.raw_code() == -nix::libc::ENOENT =>
                    {
                        break;
                    }
                    Err(e) => return Err(e).context("reading the route table"),
                }
            }
        }
        Ok(all)
    }

    /// Writes and deletes routes of ours: prefixes, and whether each is to be there. Those that the
    /// kernel would not take come back.
    pub async fn write(&self, changes: Vec<(IpNet, bool)>) -> Vec<(IpNet, bool, rtnetlink::Error)> {
        let one = |(prefix, there): (IpNet, bool)| async move {
            let outcome = if there { self.add(prefix).await } else { self.delete(prefix).await };
            outcome.err().map(|e| (prefix, there, e))
        };
        let all = futures::stream::iter(changes).map(one).buffer_unordered(CONCURRENT);
        all.filter_map(|failed| async move { failed }).collect().await
    }

    async fn add(&self, prefix: IpNet) -> Result<(), rtnetlink::Error> {
        self.handle.route().add(self.route(prefix)).replace().execute().await
    }

    async fn delete(&self, prefix: IpNet) -> Result<(), rtnetlink::Error> {
        match self.handle.route().del(self.route(prefix)).execute().await {
            Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -nix::libc::ESRCH => Ok(()),
            done => done,
        }
    }

    /// A route of ours. It is there to be read, not to be used: no packet follows it, and it is of
    /// no interface that could go down and take it away.
    fn route(&self, prefix: IpNet) -> RouteMessage {
        let protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
        match prefix {
            IpNet::V6(p) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(p.addr(), p.prefix_len())
                .kind(RouteType::BlackHole)
                .table_id(self.id)
                .protocol(protocol)
                .build(),
            IpNet::V4(p) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(p.addr(), p.prefix_len())
                .kind(RouteType::BlackHole)
                .table_id(self.id)
                .protocol(protocol)
                .build(),
        }
    }

    fn of(&self, message: &RouteMessage) -> Option<Found> {
        let (mut table, mut to, mut gateways) = (u32::from(message.header.table), None, Vec::new());
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Table(id) => table = *id,
                RouteAttribute::Destination(RouteAddress::Inet6(ip)) => to = Some(IpAddr::V6(*ip)),
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => to = Some(IpAddr::V4(*ip)),
                RouteAttribute::MultiPath(hops) => {
                    gateways.extend(hops.iter().flat_map(|h| &h.attributes).filter_map(gateway));
                }
                other => gateways.extend(gateway(other)),
            }
        }
        if table != self.id {
            return None;
        }
        let to = to.unwrap_or(match message.header.address_family {
            AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
            _ => Ipv6Addr::UNSPECIFIED.into(),
        });
        let prefix = IpNet::new(to, message.header.destination_prefix_length).ok()?;
        Some(Found { prefix, gateways, protocol: message.header.protocol.into() })
    }
}

fn gateway(attribute: &RouteAttribute) -> Option<Ipv6Addr> {
    match attribute {
        // An IPv4 route by a neighbour that has IPv6 addresses only (RFC 8950) comes as `Via`.
        RouteAttribute::Gateway(RouteAddress::Inet6(ip))
        | RouteAttribute::Via(RouteVia::Inet6(ip)) => Some(*ip),
        _ => None,
    }
}

/// What has happened to the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// A route was written.
    Set(Found),
    /// A route was deleted.
    Deleted(Found),
    /// Notifications were lost: the table has to be read again.
    Lost,
}

/// Notifications of the kernel about all routes, from the moment on at which it was opened.
#[derive(Debug)]
pub struct Watch {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Begins to watch.
    ///
    /// # Errors
    /// If there is no netlink socket to be had.
    pub fn open() -> std::io::Result<Self> {
        let groups = [MulticastGroup::Ipv6Route, MulticastGroup::Ipv4Route];
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups)?;
        let mut connection = connection;
        let socket = connection.socket_mut().socket_ref();
        if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            // Without the right to it, as much as anybody gets; what is lost is read again.
            let _ = socket.set_rx_buf_sz(RECEIVE_BUFFER);
        }
        Ok(Self { messages, task: tokio::spawn(connection) })
    }

    /// The next things that happened to a table, at least one and at most `most`, in order.
    pub async fn next(&mut self, table: &Table, most: usize) -> Vec<Seen> {
        let mut seen = Vec::new();
        while seen.is_empty() {
            let Some((message, _)) = self.messages.next().await else { return vec![Seen::Lost] };
            seen.extend(of(table, message));
        }
        while seen.len() < most
            && let Ok((message, _)) = self.messages.try_recv()
        {
            seen.extend(of(table, message));
        }
        seen
    }
}

fn of(table: &Table, message: NetlinkMessage<RouteNetlinkMessage>) -> Option<Seen> {
    match message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(m)) => {
            table.of(&m).map(Seen::Set)
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelRoute(m)) => {
            table.of(&m).map(Seen::Deleted)
        }
        NetlinkPayload::Overrun(_) => Some(Seen::Lost),
        _ => None,
    }
}
