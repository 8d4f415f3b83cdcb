//! A Server's answers to DHCPv6 messages that our own Client does not send, or not like this:
//! RFC 8415 sections 16 and 18.3, message by message, from a client of any make.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use aero_protocol::Output;
use aero_protocol::address::{
    ALL_DHCP_SERVERS, BOOTSTRAP_ADDRESS, Duid, LinkLayerAddress, aero_address,
};
use aero_protocol::wire::aero_options::AeroOption;
use aero_protocol::wire::dhcpv6::{IaNa, IaPd, Kind, Message, OPTION_VENDOR_OPTS, StatusCode};
use aero_protocol::wire::ip::{self, Packet, Payload};
use common::{Link, duid, node_address, prefix, server_address};

/// A Server whose table gives client 1 its prefix, held at node 21.
fn server() -> Link {
    let mut link = Link::new();
    link.add_server(11);
    link.map(1, 1, node_address(21));
    link
}

fn message(kind: Kind, n: u16) -> Message {
    let mut m = Message::new(kind, [7, 7, 7]);
    m.client = Some(duid(n));
    // Room for a refusal: who is not served gets no more bytes than it sent.
    m.aero = vec![AeroOption::Padding(100)];
    m.ia_pd.push(IaPd { id: 5, ..IaPd::default() });
    m
}

/// Sends a message from an outer address; the answer, if there is one.
fn ask(link: &mut Link, from: LinkLayerAddress, m: &Message) -> Option<Message> {
    let source = BOOTSTRAP_ADDRESS;
    let packet = ip::udp((source, 546), (ALL_DHCP_SERVERS, 547), &m.emit().unwrap()).unwrap();
    let now = link.now;
    let at = server_address(11);
    link.server(at).engine.handle_packet(from, &packet, now);
    let mut answer = None;
    while let Some(output) = link.server(at).engine.poll_output() {
        match output {
            Output::Send { to, packet } => {
                let parsed = Packet::parse(&packet).unwrap();
                if let Payload::Udp { data, destination, .. } = parsed.payload {
                    assert_eq!((to, destination, parsed.destination), (from, 546, source));
                    answer = Some(Message::parse(data).unwrap());
                }
            }
            Output::Forward(change) => link.server(at).table.apply(&change),
            Output::Event(_) | Output::SendOn { .. } => {}
        }
    }
    answer
}

fn bound(link: &mut Link) -> (Message, Duid) {
    let mut solicit = message(Kind::Solicit, 1);
    solicit.rapid_commit = true;
    let reply = ask(link, node_address(21), &solicit).unwrap();
    let id = reply.server.clone().unwrap();
    (reply, id)
}

fn leases(link: &mut Link) -> usize {
    link.server(server_address(11)).engine.neighbors().count()
}

#[test]
fn the_four_message_form_offers_first_and_commits_with_the_request() {
    let mut link = server();
    let advertise = ask(&mut link, node_address(21), &message(Kind::Solicit, 1)).unwrap();
    assert_eq!(advertise.kind, Kind::Advertise);
    assert_eq!(advertise.ia_pd[0].prefixes[0].prefix, prefix(1));
    assert_eq!(leases(&mut link), 0, "an offer is no lease");
    let mut request = message(Kind::Request, 1);
    request.server = advertise.server.clone();
    let reply = ask(&mut link, node_address(21), &request).unwrap();
    assert_eq!((reply.kind, reply.ia_pd[0].id), (Kind::Reply, 5));
    assert_eq!(reply.ia_pd[0].prefixes, advertise.ia_pd[0].prefixes);
    assert_eq!(leases(&mut link), 1);
}

#[test]
fn lifetimes_and_times_to_renew_follow_from_the_lease() {
    let (reply, _) = bound(&mut server());
    assert!(reply.rapid_commit);
    let ia = &reply.ia_pd[0];
    assert_eq!((ia.t1, ia.t2, ia.prefixes[0].preferred, ia.prefixes[0].valid), (20, 32, 40, 40));
}

#[test]
fn whoever_asks_for_the_vendor_option_is_told_the_service_prefixes_and_its_own_address() {
    let mut link = server();
    let mut solicit = message(Kind::Solicit, 1);
    solicit.rapid_commit = true;
    solicit.requested = vec![OPTION_VENDOR_OPTS];
    solicit.aero.push(AeroOption::LinkRequest { link_id: 3, preference: 3 });
    let reply = ask(&mut link, node_address(21), &solicit).unwrap();
    let asps = vec!["2001:db8::/32".parse().unwrap()];
    let link_reply = AeroOption::LinkReply { link_id: 3, address: node_address(21), asps };
    let serving = AeroOption::Serving { joined: false, preference: 250 };
    assert_eq!(reply.aero, [link_reply, serving]);
    solicit.requested.clear();
    assert!(ask(&mut link, node_address(21), &solicit).unwrap().aero.is_empty());
}

#[test]
fn a_client_without_a_mapping_is_offered_nothing_even_with_rapid_commit() {
    let _row = aero_elements::covers(&["E2 neg"]);
    let mut link = server();
    let mut solicit = message(Kind::Solicit, 9);
    solicit.rapid_commit = true;
    let answer = ask(&mut link, node_address(21), &solicit).unwrap();
    assert_eq!(answer.kind, Kind::Advertise);
    assert_eq!(answer.ia_pd[0].status.as_ref().unwrap().code, StatusCode::NoPrefixAvail);
    assert_eq!(leases(&mut link), 0);
}

#[test]
fn a_renew_or_rebind_without_a_lease_gets_no_binding_inside_its_ia_pd() {
    let mut link = server();
    let (_, id) = bound(&mut link);
    link.run(Duration::from_secs(41));
    for kind in [Kind::Renew, Kind::Rebind] {
        let mut m = message(kind, 1);
        m.server = (kind == Kind::Renew).then(|| id.clone());
        let reply = ask(&mut link, node_address(21), &m).unwrap();
        assert_eq!(reply.kind, Kind::Reply);
        assert_eq!(reply.ia_pd[0].status.as_ref().unwrap().code, StatusCode::NoBinding, "{kind:?}");
        assert!(reply.status.is_none() && reply.ia_pd[0].prefixes.is_empty());
    }
}

#[test]
fn a_rebind_from_where_the_holder_is_not_gets_no_binding_and_changes_nothing() {
    let mut link = server();
    bound(&mut link);
    let reply = ask(&mut link, node_address(66), &message(Kind::Rebind, 1)).unwrap();
    assert_eq!(reply.ia_pd[0].status.as_ref().unwrap().code, StatusCode::NoBinding);
    let at = server_address(11);
    let kept: Vec<_> = link.server(at).engine.neighbors().map(|n| n.link_layer).collect();
    assert_eq!(kept, [node_address(21)]);
}

#[test]
fn a_release_is_a_success_and_a_second_one_too_with_no_binding_inside() {
    let mut link = server();
    let (_, id) = bound(&mut link);
    let mut release = message(Kind::Release, 1);
    release.server = Some(id);
    let first = ask(&mut link, node_address(21), &release).unwrap();
    assert_eq!(first.status.as_ref().unwrap().code, StatusCode::Success);
    assert_eq!(leases(&mut link), 0);
    let second = ask(&mut link, node_address(21), &release).unwrap();
    assert_eq!(second.status.as_ref().unwrap().code, StatusCode::Success);
    assert_eq!(second.ia_pd[0].status.as_ref().unwrap().code, StatusCode::NoBinding);
}

#[test]
fn a_confirm_of_addresses_is_not_on_link_and_one_of_prefixes_is_discarded() {
    let mut link = server();
    let mut confirm = message(Kind::Confirm, 1);
    assert_eq!(ask(&mut link, node_address(21), &confirm), None, "section 18.3.3");
    confirm.ia_na.push(IaNa { id: 1, has_addresses: true, status: None });
    // The codec writes no addresses, so the bytes of one are put in by hand.
    let mut data = confirm.emit().unwrap();
    let at = data.windows(4).position(|w| w == [0, 3, 0, 12]).unwrap();
    let mut address = vec![0, 5, 0, 24];
    address.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
    address.extend([0; 8]);
    data[at + 3] = 12 + 28;
    let after = at + 4 + 12;
    data.splice(after..after, address);
    let confirm = Message::parse(&data).unwrap();
    assert!(confirm.ia_na[0].has_addresses);
    let packet = ip::udp((BOOTSTRAP_ADDRESS, 546), (ALL_DHCP_SERVERS, 547), &data).unwrap();
    let now = link.now;
    let server = server_address(11);
    link.server(server).engine.handle_packet(node_address(21), &packet, now);
    let Some(Output::Send { packet, .. }) = link.server(server).engine.poll_output() else {
        panic!("no answer")
    };
    let Payload::Udp { data, .. } = Packet::parse(&packet).unwrap().payload else { panic!() };
    let reply = Message::parse(data).unwrap();
    assert_eq!(reply.status.unwrap().code, StatusCode::NotOnLink);
}

#[test]
fn a_decline_is_answered_though_no_address_was_given() {
    let mut link = server();
    let (_, id) = bound(&mut link);
    let mut decline = message(Kind::Decline, 1);
    decline.server = Some(id);
    decline.ia_na.push(IaNa { id: 2, has_addresses: false, status: None });
    let reply = ask(&mut link, node_address(21), &decline).unwrap();
    assert_eq!(reply.status.as_ref().unwrap().code, StatusCode::Success);
    assert_eq!(reply.ia_na[0].status.as_ref().unwrap().code, StatusCode::NoBinding);
    assert_eq!(leases(&mut link), 1, "the prefix stays");
}

#[test]
fn a_wish_for_addresses_is_answered_with_no_addrs_avail_beside_the_prefix() {
    let mut link = server();
    let mut solicit = message(Kind::Solicit, 1);
    solicit.rapid_commit = true;
    solicit.ia_na.push(IaNa { id: 2, has_addresses: false, status: None });
    solicit.ia_pd.push(IaPd { id: 6, ..IaPd::default() });
    let reply = ask(&mut link, node_address(21), &solicit).unwrap();
    assert_eq!(reply.ia_na[0].status.as_ref().unwrap().code, StatusCode::NoAddrsAvail);
    assert_eq!(reply.ia_pd[0].prefixes.len(), 1);
    assert_eq!(reply.ia_pd[1].status.as_ref().unwrap().code, StatusCode::NoPrefixAvail);
}

#[test]
fn an_information_request_is_answered_without_any_association() {
    let mut link = server();
    let mut m = message(Kind::InformationRequest, 1);
    m.ia_pd.clear();
    let reply = ask(&mut link, node_address(66), &m).unwrap();
    assert_eq!(reply.kind, Kind::Reply);
    assert!(reply.ia_pd.is_empty() && reply.server.is_some());
    // Nobody need say who he is, and the answer is no longer than the question.
    m.client = None;
    m.requested = vec![OPTION_VENDOR_OPTS];
    m.aero = vec![AeroOption::Padding(160)];
    let reply = ask(&mut link, node_address(66), &m).unwrap();
    assert!(reply.client.is_none());
    assert_eq!(reply.aero.last(), Some(&AeroOption::Serving { joined: false, preference: 250 }));
}

#[test]
fn messages_that_section_16_says_to_discard_get_no_answer() {
    let mut link = server();
    let (_, id) = bound(&mut link);
    let other = Some(duid(99));
    let mut bad = Vec::new();
    let mut m = message(Kind::Solicit, 1);
    m.client = None;
    bad.push(("Solicit without a client", m));
    let mut m = message(Kind::Solicit, 1);
    m.server = Some(id.clone());
    bad.push(("Solicit with a server", m));
    for kind in [Kind::Request, Kind::Renew, Kind::Release, Kind::Decline] {
        bad.push(("without a server", message(kind, 1)));
        let mut m = message(kind, 1);
        m.server.clone_from(&other);
        bad.push(("for another server", m));
    }
    let mut m = message(Kind::Rebind, 1);
    m.server = Some(id.clone());
    bad.push(("Rebind with a server", m));
    bad.push(("Information-request with an association", message(Kind::InformationRequest, 1)));
    for kind in [Kind::Advertise, Kind::Reply] {
        let mut m = message(kind, 1);
        m.server = Some(id.clone());
        bad.push(("a server's message", m));
    }
    for (what, m) in bad {
        assert_eq!(ask(&mut link, node_address(21), &m), None, "{what}: {:?}", m.kind);
    }
    assert_eq!(leases(&mut link), 1);
    assert_eq!(
        aero_address(prefix(1)),
        "fe80::2001:db8:0:1".parse::<std::net::Ipv6Addr>().unwrap()
    );
}

#[test]
fn who_is_refused_gets_no_more_bytes_than_it_sent_and_who_sent_too_few_gets_none() {
    let mut link = server();
    let at = server_address(11);
    let mut texts = Vec::new();
    for padding in 0..=200 {
        let mut solicit = message(Kind::Solicit, 9);
        solicit.requested = vec![OPTION_VENDOR_OPTS];
        solicit.aero = vec![AeroOption::Padding(padding)];
        let data = solicit.emit().unwrap();
        let packet = ip::udp((BOOTSTRAP_ADDRESS, 546), (ALL_DHCP_SERVERS, 547), &data).unwrap();
        let now = link.now;
        link.server(at).engine.handle_packet(node_address(66), &packet, now);
        while let Some(output) = link.server(at).engine.poll_output() {
            let Output::Send { packet: answer, .. } = output else { continue };
            assert!(answer.len() <= packet.len(), "{} for {}", answer.len(), packet.len());
            let Payload::Udp { data, .. } = Packet::parse(&answer).unwrap().payload else {
                panic!("not UDP");
            };
            let answer = Message::parse(data).unwrap();
            let status = answer.ia_pd[0].status.as_ref().unwrap();
            assert_eq!(status.code, StatusCode::NoPrefixAvail);
            texts.push(status.text.clone());
        }
    }
    assert!(texts.len() > 100, "{} answers", texts.len());
    assert!(texts.len() < 200 && texts[0].len() < 10, "the shortest had no room");
    assert_eq!(texts.last().map(String::as_str), Some("no prefix is mapped to this client"));
}
