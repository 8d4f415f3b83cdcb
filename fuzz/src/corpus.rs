//! The packets that mutation starts from: the files in `corpus/`, one packet each in hex.

use std::path::{Path, PathBuf};

use aero_protocol::address::{
    ALL_DHCP_SERVERS, BOOTSTRAP_ADDRESS, Duid, Epoch, LinkLayerAddress, aero_address,
};
use aero_protocol::wire::aero_options::{AeroOption, Claim};
use aero_protocol::wire::dhcpv6::{
    IaNa, IaPd, Kind, Message, OPTION_SOL_MAX_RT, OPTION_VENDOR_OPTS, Prefix, Status, StatusCode,
};
use aero_protocol::wire::ip::{self, Packet, Payload};
use aero_protocol::wire::nd::{LinkLayerOption, Nd, NdMessage, NdOption};
use aero_protocol::wire::signature::{self, Covered, Key, SECRET, Signature};
use anyhow::{Context, Result};
use ipnet::IpNet;
use uuid::Uuid;

/// Where the corpus lies.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// Reads the corpus.
///
/// # Errors
/// If a file is not hex.
pub fn read(folder: &Path) -> Result<Vec<Vec<u8>>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .with_context(|| folder.display().to_string())?
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "hex"))
        .collect();
    files.sort();
    let mut all = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path)?;
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let bytes: Result<Vec<u8>, _> = digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(&String::from_utf8_lossy(pair), 16))
            .collect();
        all.push(bytes.with_context(|| path.display().to_string())?);
    }
    Ok(all)
}

/// The prefix of a client of the fuzzed link.
pub fn prefix(client: u16) -> IpNet {
    format!("2001:db8:0:{client:x}::/64").parse().unwrap()
}

/// The DUID of a client of the fuzzed link.
pub fn duid(client: u16) -> Duid {
    Duid::from_uuid(Uuid::from_u128(u128::from(client)))
}

/// The pod of a client.
pub fn holder(client: u16) -> Uuid {
    Uuid::from_u128((u128::from(client) << 64) | 1)
}

/// The DUID of the Server of the fuzzed link.
pub fn server_duid() -> Duid {
    Duid::from_uuid(Uuid::from_u128(11 << 100))
}

/// A good message of every kind, to begin a corpus with: names and packets.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for kind in [
        Kind::Solicit,
        Kind::Advertise,
        Kind::Request,
        Kind::Confirm,
        Kind::Renew,
        Kind::Rebind,
        Kind::Reply,
        Kind::Release,
        Kind::Decline,
        Kind::InformationRequest,
    ] {
        all.push((format!("dhcpv6-{kind:?}").to_lowercase(), dhcp(kind, 1)));
    }
    for (name, kind) in
        [("dhcpv6-signed-rebind", Kind::Rebind), ("dhcpv6-signed-reply", Kind::Reply)]
    {
        all.push((name.into(), signed(&dhcp(kind, 1), 1, 1, Some(9))));
    }
    let address = LinkLayerAddress::new("192.0.2.21".parse().unwrap(), 8061);
    let link = |address| LinkLayerOption { link_id: 0, preference: 255, address };
    let client = aero_address(prefix(1));
    let server = "fe80::192.0.2.11".parse().unwrap();
    let nd = |source, destination, message, options| {
        Nd { source, destination, message, options }.emit().unwrap()
    };
    let nonce = NdOption::Nonce(vec![1, 2, 3, 4, 5, 6]);
    all.push((
        "nd-solicitation".into(),
        nd(client, server, NdMessage::Solicitation { target: server }, vec![nonce.clone()]),
    ));
    let advertisement = |solicited, target| NdMessage::Advertisement {
        solicited,
        override_cached: !solicited,
        target,
    };
    all.push((
        "nd-advertisement".into(),
        nd(server, client, advertisement(true, server), vec![nonce]),
    ));
    all.push((
        "nd-departure".into(),
        nd(
            server,
            client,
            advertisement(false, client),
            vec![NdOption::Epoch(Epoch(2)), NdOption::TargetLinkLayer(link(Some(address)))],
        ),
    ));
    all.push((
        "nd-link-layer-empty".into(),
        nd(
            client,
            server,
            advertisement(false, client),
            vec![NdOption::TargetLinkLayer(link(None)), NdOption::SourceLinkLayer(link(None))],
        ),
    ));
    for (name, predirect) in [("nd-predirect", true), ("nd-redirect", false)] {
        let other = aero_address(prefix(2));
        let (source, destination) = if predirect { (client, other) } else { (other, client) };
        let message = NdMessage::Redirect {
            predirect,
            target: source,
            destination: "2001:db8:0:1::1".parse().unwrap(),
            prefix_length: 64,
        };
        let options = vec![
            NdOption::TargetLinkLayer(link(predirect.then_some(address))),
            NdOption::Timestamp(std::time::Duration::from_secs(0x5472_7500)),
            NdOption::Nonce(vec![1, 2, 3, 4, 5, 6]),
            NdOption::RedirectedHeader(vec![0x60; 40]),
        ];
        all.push((name.into(), nd(source, destination, message, options)));
    }
    let anycast = aero_protocol::address::SERVER_ANYCAST;
    all.push((
        "nd-router-solicitation".into(),
        nd(client, anycast, NdMessage::RouterSolicitation, vec![]),
    ));
    all.push((
        "nd-router-advertisement".into(),
        nd(
            server,
            client,
            NdMessage::RouterAdvertisement { lifetime: 0 },
            vec![NdOption::SourceLinkLayer(link(Some(address)))],
        ),
    ));
    all.push(("data-ipv4".into(), vec![0x45; 28]));
    all.push(("shim".into(), vec![0x02, 41, 0, 1, 0, 0, 0, 1, 0x60, 0, 0, 0]));
    all.push(("first-edition".into(), vec![0x00, 0x00, 0, 64, 0, 0, 0, 1]));
    all
}

/// The key of a client of the fuzzed link.
pub fn key(client: u16) -> Key {
    Key::new(1, [u8::try_from(client).unwrap_or(u8::MAX); SECRET])
}

/// A packet signed with a client's key; `again` as in a Server's answer to another session.
pub fn signed(packet: &[u8], session: u64, counter: u64, again: Option<u64>) -> Vec<u8> {
    let p = Packet::parse(packet).unwrap();
    let Payload::Udp { source, destination, data } = p.payload else { return packet.to_vec() };
    let mut m = Message::parse(data).unwrap();
    let client = m.client.as_ref().and_then(Duid::uuid).map_or(0, |u| u.as_u128() & 0xffff);
    let option = Signature { key: 1, session, counter, bound: false, digest: [0; 32] };
    m.aero.push(AeroOption::Signature(option));
    m.aero.extend(again.map(AeroOption::Again));
    let mut data = m.emit().unwrap();
    let covered = Covered { source: p.source, destination: p.destination, outer: None };
    let key = key(u16::try_from(client).unwrap_or(0));
    signature::sign(&mut data, &covered, &key).unwrap();
    ip::udp((p.source, source), (p.destination, destination), &data).unwrap()
}

/// The signature of a packet, if it is a signed DHCPv6 message.
pub fn signature_of(packet: &[u8]) -> Option<Signature> {
    let Payload::Udp { data, .. } = Packet::parse(packet).ok()?.payload else { return None };
    Signature::of(&Message::parse(data).ok()?).ok()?.copied()
}

/// A DHCPv6 packet with most of what it can hold.
pub fn dhcp(kind: Kind, client: u16) -> Vec<u8> {
    let mut m = Message::new(kind, [1, 2, 3]);
    m.client = Some(duid(client));
    if !matches!(kind, Kind::Solicit | Kind::Rebind | Kind::Confirm | Kind::InformationRequest) {
        m.server = Some(server_duid());
    }
    m.rapid_commit = matches!(kind, Kind::Solicit | Kind::Reply);
    m.elapsed = Some(0);
    m.requested = vec![OPTION_VENDOR_OPTS, OPTION_SOL_MAX_RT];
    if kind != Kind::InformationRequest {
        let prefixes = vec![Prefix { prefix: prefix(client), preferred: 40, valid: 40 }];
        m.ia_pd.push(IaPd { id: 1, t1: 20, t2: 32, prefixes, status: None });
    }
    if matches!(kind, Kind::Decline | Kind::Reply) {
        let status = Some(Status::new(StatusCode::NoAddrsAvail, "none"));
        m.ia_na.push(IaNa { id: 2, has_addresses: false, status });
    }
    m.aero.push(AeroOption::LinkRequest { link_id: 0, preference: 3 });
    m.aero.push(AeroOption::Claim(Claim { epoch: Epoch(1), holder: holder(client) }));
    let from_server = matches!(kind, Kind::Advertise | Kind::Reply);
    let data = m.emit().unwrap();
    if from_server {
        let server = "fe80::192.0.2.11".parse().unwrap();
        ip::udp((server, 547), (aero_address(prefix(client)), 546), &data).unwrap()
    } else {
        ip::udp((BOOTSTRAP_ADDRESS, 546), (ALL_DHCP_SERVERS, 547), &data).unwrap()
    }
}
