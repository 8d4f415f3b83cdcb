//! Users' packets on the link in memory, with the engine told of them as a forwarder would.

use std::net::IpAddr;
use std::time::Duration;

use aero_protocol::address::LinkLayerAddress;
use aero_protocol::client::{Event, Ignored, PathLost};
use aero_protocol::forwarding::{Disposition, Inner};
use aero_protocol::neighbor::State;
use aero_protocol::wire::ip::Packet;
use aero_protocol::wire::nd::{Nd, NdMessage};

use super::{Link, Role, Sent, host, node_address, server_address};

pub const SECOND: Duration = Duration::from_secs(1);
pub const MILLI: Duration = Duration::from_millis(1);

/// One Server, Client 1 on node 21, Clients 2 and 3 on node 22.
pub fn pair() -> Link {
    let mut link = Link::new();
    let server = link.add_server(11);
    for n in [21, 22] {
        link.add_node(n, &[server]);
    }
    for (client, node) in [(1, 21), (2, 22), (3, 22)] {
        link.map(client, 1, node_address(node));
        link.attach(node_address(node), client, 1);
    }
    link.run(SECOND);
    link
}

/// An IPv6 packet with `length` bytes of payload.
pub fn packet(source: IpAddr, destination: IpAddr, length: u16) -> Vec<u8> {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (source, destination) else { panic!() };
    let mut p = vec![0x60, 0, 0, 0];
    p.extend(length.to_be_bytes());
    p.extend([59, 64]);
    p.extend(source.octets());
    p.extend(destination.octets());
    p.resize(40 + usize::from(length), 7);
    p
}

/// Sends a user's packet from a node, as its forwarder would: the engine hears of packets that
/// go by the Server and of direct paths that are used. Returns the hops.
pub fn talk_to(
    link: &mut Link,
    at: LinkLayerAddress,
    source: IpAddr,
    destination: IpAddr,
) -> Result<Vec<LinkLayerAddress>, String> {
    let (inner, now) = (Inner { source, destination }, link.now);
    let node = link.node(at);
    let egress = node.table.egress_path(inner, now);
    if egress.by_server {
        let bytes = packet(source, destination, 1460);
        node.engine.data_packet_by_server(inner, &bytes, now);
    }
    for (own, peer) in node.table.take_used() {
        node.engine.path_used(own, peer, now);
    }
    link.drain(at);
    let mut hops = Vec::new();
    let (mut disposition, mut at) = (egress.disposition, at);
    loop {
        match disposition {
            Disposition::Deliver => return Ok(hops),
            Disposition::Drop(why) => return Err(format!("{} at {at}", why.label())),
            Disposition::Hold { .. } => return Err(format!("held at {at}")),
            Disposition::Tunnel(to) => {
                assert!(hops.len() < 6, "a loop: {hops:?}");
                hops.push(to);
                if link.dead.contains(&to) {
                    return Err(format!("{to} is dead"));
                }
                let table = match link.roles.get(&to) {
                    Some(Role::Node(n)) => &n.table,
                    Some(Role::Server(s)) => &s.table,
                    None => return Err(format!("nobody at {to}")),
                };
                disposition = table.ingress(at, inner, now);
                at = to;
            }
        }
    }
}

pub fn talk(
    link: &mut Link,
    node: u8,
    from: u16,
    to: u16,
) -> Result<Vec<LinkLayerAddress>, String> {
    talk_to(link, node_address(node), host(from), host(to))
}

pub fn by_server(node: u8) -> Result<Vec<LinkLayerAddress>, String> {
    Ok(vec![server_address(11), node_address(node)])
}

pub fn direct(node: u8) -> Result<Vec<LinkLayerAddress>, String> {
    Ok(vec![node_address(node)])
}

/// A pair with a path from Client 1 to Client 2.
pub fn one_way() -> Link {
    let mut link = pair();
    assert_eq!(talk(&mut link, 21, 1, 2), by_server(22));
    link.run(SECOND / 10);
    assert_eq!(talk(&mut link, 21, 1, 2), direct(22));
    link
}

/// A pair with paths both ways.
pub fn mutual() -> Link {
    let mut link = one_way();
    assert_eq!(talk(&mut link, 22, 2, 1), by_server(21));
    link.run(SECOND / 10);
    assert_eq!(talk(&mut link, 22, 2, 1), direct(21));
    link
}

pub fn read(sent: &Sent) -> Option<Nd> {
    Nd::parse(&Packet::parse(&sent.packet).unwrap()).ok()
}

/// Neighbor Discovery messages since the n-th of the run that `want` takes.
pub fn messages(link: &Link, since: usize, want: impl Fn(&Nd) -> bool) -> Vec<(Sent, Nd)> {
    link.sent[since..]
        .iter()
        .filter_map(|s| Some((s.clone(), read(s)?)))
        .filter(|(_, nd)| want(nd))
        .collect()
}

pub fn is_predirect(nd: &Nd) -> bool {
    matches!(nd.message, NdMessage::Redirect { predirect: true, .. })
}

pub fn is_redirect(nd: &Nd) -> bool {
    matches!(nd.message, NdMessage::Redirect { predirect: false, .. })
}

pub fn is_solicitation(nd: &Nd) -> bool {
    matches!(nd.message, NdMessage::Solicitation { .. }) && nd.destination.segments()[4] != 0
}

pub fn is_unsolicited(nd: &Nd) -> bool {
    matches!(nd.message, NdMessage::Advertisement { solicited: false, .. })
}

/// Hands a message to a node or Server as if it came from `from`.
pub fn inject(link: &mut Link, to: LinkLayerAddress, from: LinkLayerAddress, packet: &[u8]) {
    let now = link.now;
    match link.roles.get_mut(&to) {
        Some(Role::Node(n)) => n.engine.handle_packet(from, packet, now),
        Some(Role::Server(s)) => s.engine.handle_packet(from, packet, now),
        None => panic!("nobody at {to}"),
    }
    link.drain(to);
}

pub fn ignored(link: &mut Link, node: u8) -> Vec<Ignored> {
    let events = &link.node(node_address(node)).events;
    events
        .iter()
        .filter_map(|e| if let Event::Ignored { why, .. } = e { Some(*why) } else { None })
        .collect()
}

pub fn lost(link: &mut Link, node: u8) -> Vec<PathLost> {
    let events = &link.node(node_address(node)).events;
    events
        .iter()
        .filter_map(|e| if let Event::PathLost { why, .. } = e { Some(*why) } else { None })
        .collect()
}

pub fn states(link: &mut Link, node: u8) -> Vec<State> {
    let now = link.now;
    link.node(node_address(node)).engine.correspondents().map(|n| n.state(now)).collect()
}
