//! The elements of the protocol that this project promises, one row each.
//!
//! The letters group them: A to D the link and its parts, E and F the prefix service, G to I
//! registration and its authentication, J and K neighbour discovery and route optimisation, L to
//! N mobility (inside the link, over the Internet, by proxy), O capability discovery, P Forwarding
//! Agents, Q and R uses and scale, T and U the deprecated relay model, V the topics, W sizes and
//! robustness.

/// One element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Its short name, as tests claim it.
    pub id: &'static str,
    /// What must be seen.
    pub what: &'static str,
}

const fn row(id: &'static str, what: &'static str) -> Row {
    Row { id, what }
}

/// A row that says no more than that others are shown: nobody claims it, it follows from all of
/// those that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Derived {
    /// The row.
    pub id: &'static str,
    /// The rows that it stands for.
    pub of: &'static [&'static str],
}

/// The rows that follow from others.
pub const DERIVED: &[Derived] = &[
    Derived {
        id: "B5",
        of: &[
            "L1", "L2", "L3", "L4", "L5", "L5b", "L5c", "L6", "L7", "L8", "M1", "M2", "M3", "M4",
            "M5", "M6", "M7", "M8",
        ],
    },
    Derived {
        id: "C2",
        of: &[
            "K1", "K1b", "K2", "K2 neg", "K2b", "K2c", "K3", "K3b", "K3c", "K3d", "K4", "K4b",
            "K4c",
        ],
    },
    Derived {
        id: "V1",
        of: &[
            "E1", "E2", "E2 neg", "E3", "E4", "E5", "E6", "E7", "E8", "E9", "F1", "F2", "F3", "F4",
        ],
    },
    Derived { id: "V2", of: &["K5", "L2", "L3"] },
    Derived {
        id: "V3",
        of: &[
            "L1", "L2", "L3", "L4", "L5", "L5b", "L5c", "L6", "L7", "L8", "M1", "M2", "M3", "M4",
            "M5", "M6", "M7", "M8", "N1", "N2", "N3", "N4", "N5", "N6", "N6b", "N6c", "N6d",
        ],
    },
    Derived { id: "V4", of: &["O1", "O2", "O3", "O4"] },
    Derived { id: "V5", of: &["P1", "P2", "P3", "P4", "P5", "P5 neg"] },
];

/// Finds a row by its id.
pub fn find(id: &str) -> Option<&'static Row> {
    ROWS.iter().find(|r| r.id == id)
}

/// The rows that a row follows from, if it does.
pub fn derived(id: &str) -> Option<&'static [&'static str]> {
    DERIVED.iter().find(|d| d.id == id).map(|d| d.of)
}

/// Those of the rows that `id` follows from which `shown` does not have; none if it is claimed
/// like any other row.
pub fn missing(id: &str, shown: impl Fn(&str) -> bool) -> Vec<&'static str> {
    derived(id).unwrap_or_default().iter().copied().filter(|of| !shown(of)).collect()
}

/// All elements, in the order of the table.
pub const ROWS: &[Row] = &[
    // The link and its history.
    row("A1", "the documents name the base draft (-48) and every deviation from it"),
    row("A2", "a data packet has the inner IP header directly behind outer UDP"),
    row("A3", "a message of RFC 6706 (first octet 0) is dropped in silence by every role"),
    row("A4", "route optimisation travels as ICMPv6 137 inside IPv6, not as a bare datagram"),
    row("B1", "hosts reach each other by ACP with no ACP route in the underlay"),
    row("B2", "the underlay sees IP/UDP with one port and nothing else of AERO"),
    row("B3", "a Client's /56 serves several networks behind it, also after it moved"),
    row("B4", "a connection outlives two changes of the underlay address; inner addresses stay"),
    row("B5", "mobility inside the link and over the Internet both work (L and M rows)"),
    row("B6", "a Server uses the registered link of the highest preference, and leaves one at 0"),
    row("C1", "a Solicit to the link's multicast address is unicast to one Server on the underlay"),
    row("C1a", "the underlay's own traffic is untouched by AERO starting and stopping"),
    row(
        "C1b",
        "neighbours with an entry get a solicited NA with their nonce; strangers get nothing",
    ),
    row("C1c", "a permanent neighbour is known by address and port both"),
    row("C2", "neighbour discovery carries route optimisation and reachability (K rows)"),
    row("C3", "a lease is one BGP announcement, its end one withdrawal"),
    row("C4", "data sourced in an ACP is forwarded from the lease's start to its end, not else"),
    // Reference model.
    row("D1", "a Client's first packet goes to its Server"),
    row("D2", "a Server passes what it does not know to a Relay; the error comes back"),
    row(
        "D3",
        "a Relay hands plain IP to the native side and announces service prefixes only there",
    ),
    row("D4", "routers of the underlay need nothing of AERO"),
    row("D5", "a Server knows its own Clients only, a Relay all of them"),
    row("D6", "nothing goes back to where it came from, nor from a Relay to any Relay"),
    row("D7", "the inner hop limit is untouched by every node of the link"),
    row("D8", "outer CE and DSCP are carried on by re-encapsulation; DSCP is copied on entry"),
    // Prefix service.
    row("E1", "every Server answers DHCPv6 itself, under its own DUID"),
    row("E2", "enrolment and removal reach all Servers"),
    row("E2 neg", "an unknown Client gets no prefix and no entry"),
    row("E3", "the nearby Server is found by DNS; a static list overrides it"),
    row("E4", "one DUID gets the same prefix from any Server, also after a restart"),
    row(
        "E5",
        "leases at two Servers; one dies, traffic goes on by the other without new delegation",
    ),
    row("E6", "right after the Reply packets go to the observed address and port"),
    row("E7", "a lease ends on time unless renewed; a late Renew gets NoBinding"),
    row("E8", "the Reply lists the service prefixes to whoever asks for them"),
    row("E9", "a lease at a second Server leaves that at the first alone"),
    row("F1", "every Server is a DHCPv6 server"),
    row("F2", "a prefix is had through the nearby Server"),
    row("F3", "any Server gives the same prefix"),
    row("F4", "AERO addresses by the rule, answered from the base, for IPv4 prefixes too"),
    // Registration and authentication.
    row("G1", "a Server keeps a neighbour entry for a Client with a lease"),
    row("G1a", "a packet to the AERO address goes where one to the ACP goes"),
    row("G1b", "the link-layer address is the observed outer source"),
    row("G2", "the Request registers the underlay address"),
    row("G3", "a Rebind without right or without binding changes nothing"),
    row("G4", "a lost Rebind is repeated within a second, to every Server"),
    row("H1", "packets leave for the address that the Request registered"),
    row("H2", "a Rebind registers a new address; the next packet goes there"),
    row("H3", "several Rebinds in a row: the last wins, and BGP sees none of it"),
    row("H4", "a Server answers at the anycast address, never from it"),
    row("I1", "a Server authenticates Clients: the wrong key is refused by all"),
    row("I2", "a node that is not admitted to the network gets no lease"),
    row("I3", "a Client may claim its own DUID only"),
    row(
        "I4",
        "obsolete DHCPv6 authentication is not taken for any; doubles and replays are dropped",
    ),
    row("I5", "a changed, moved or replayed signed Rebind is refused"),
    // The link, neighbour discovery.
    row("J1", "over IPv4 and IPv6 underlays alike; mixed pairs stay on the Server path"),
    row("J2", "all neighbours are one hop away: ND arrives with hop limit 255"),
    row("J3", "ND that breaks a rule of RFC 4861 is dropped in silence"),
    row("J3b", "prefix information is ignored and no DAD is done"),
    row("J4", "Clients associate by prefix delegation"),
    row("J5", "the private BGP does not leak: no ACP outside, whatever moves"),
    row("J5b", "an unused ACP is unreachable at the Relay, at a bounded rate"),
    row("J6", "no two Clients share a link-local address; overlapping prefixes are refused"),
    row("J7", "the death of a Server does not touch the Clients of another"),
    row("J8", "a mobile router keeps its networks (B3)"),
    // Route optimisation.
    row("K1", "the first packet goes by the Server, with a Predirect of the right fields"),
    row("K1b", "at most one Predirect a second; none for destinations outside the link"),
    row("K2", "the first Server fills in the link-layer addresses and passes the Predirect on"),
    row(
        "K2 neg",
        "a Predirect with a foreign source, prefix, link, code or hop limit goes nowhere",
    ),
    row(
        "K2b",
        "the target answers a Server's Predirect with a Redirect and the nonce, no one else's",
    ),
    row("K2c", "an unwilling target: no Redirect, traffic flows by Servers"),
    row("K3", "after the Redirect data goes direct, in that direction only"),
    row("K3b", "a Redirect holds for the target's whole prefix"),
    row("K3c", "a Redirect from a stranger or with a wrong nonce changes nothing"),
    row(
        "K3d",
        "direct data is dropped before the Predirect, from a wrong address or port, and late",
    ),
    row(
        "K4",
        "three unanswered solicitations a second apart, then the Server path; a way round counts",
    ),
    row("K4b", "a direct path ends 30 s after the last sign of life, not before"),
    row("K4c", "a target without a direct path of its own answers by its Server"),
    row(
        "K5",
        "a mover's unsolicited NAs: by its Server, three at most, a second apart, empty addresses",
    ),
    row("K5 neg", "an unsolicited NA makes no entry and prolongs none"),
    row("K6", "a Relay does not answer at the Servers' anycast address"),
    // Mobility inside the link.
    row("L1", "a move under load: little loss, no reordering over a second"),
    row("L2", "the NA arrives with the new address, written by the Server"),
    row("L3", "the correspondent turns to the new address and solicits there"),
    row("L4", "moves within a Server cause no BGP message"),
    row(
        "L5",
        "to a new Server: Request there before Release at the old one, passed through the new",
    ),
    row("L5b", "the old Server sends on for five seconds, then no more"),
    row("L5c", "a Release is repeated until answered, and given up in the end"),
    row("L6", "the new announcement comes before the old withdrawal"),
    row("L7", "a Client that flaps between Servers is damped, and ends right"),
    row("L8", "links come and go by Rebind and NA; a removed one carries nothing"),
    // Over the Internet.
    row("M1", "two Predirects, by the home link and by the Internet"),
    row("M2", "two Redirects back, each reversed; one path blocked means no NS"),
    row("M3", "the NS binds only with both proofs, fresh and for that address"),
    row("M4", "data goes direct only after the NA"),
    row("M5", "each direction on its own"),
    row("M6", "a move needs a new NS only, while proofs are fresh"),
    row("M7", "a gateway hides a Client outside behind its own address"),
    row("M8", "the subnet-router anycast address is taken as the tunnel's end"),
    // Proxy.
    row("N1", "a Proxy is fixed and trusted to write link-layer addresses; a Client is not"),
    row("N2", "what is behind a Proxy needs no AERO"),
    row("N3", "attach and detach are noticed and acted on"),
    row("N4", "one delegation per attached node, under that node's DUID everywhere"),
    row("N5", "many Clients on one Proxy, each with its address; among them no Server is needed"),
    row("N6", "predictive hand-over loses nothing after the leave and keeps order"),
    row("N6b", "reactive hand-over: straight Release, the former Proxy sends on"),
    row("N6c", "a late Release of the former Proxy is ignored where the entry moved on"),
    row("N6d", "correspondents are told the new Proxy's address and optimise again"),
    // Capability discovery.
    row("O1", "a destination in a service prefix needs no DNS"),
    row("O2", "the DNS name of a prefix by the rule, queried as PTR"),
    row("O3", "an answer starts Internet-wide optimisation; any failure means the ordinary path"),
    row("O4", "prefixes behind one Proxy resolve to one address and distinct targets"),
    // Forwarding Agents.
    row("P1", "delegation looks the same with an agent deployed"),
    row("P2", "the agent forwards what its Server gave it, follows a move, stops at the end"),
    row("P3", "first packets go by the Server"),
    row("P4", "the Server announces the agent by RA, for one prefix or all, at a bounded rate"),
    row("P5", "then data goes by the agent, control by the Server; a dead agent costs 3 s at most"),
    row("P5 neg", "an RA from anybody but a Server is ignored"),
    // Uses and scale.
    row("Q1", "a host as a Client needs no privilege of its applications"),
    row("Q2", "the best of three links dies: sessions go on by the next"),
    row("Q3", "a Server and a Relay die together: reachable again without a hand"),
    row("R1", "fe80::2001:db8:1:2 for 2001:db8:1:2::/64"),
    row("R1b", "addresses stay over 50 moves between two Servers"),
    row("R2", "optimisation happens only through the trust anchors"),
    row("R2b", "hosts deep behind a Client are reached direct as well"),
    row("R2c", "behind NAT: the mapped port, kept alive; a blocked direct path falls back"),
    row("R3", "the number of Clients that one Server holds, and its memory"),
    row("R3b", "BGP with a third party's router: session, ACPs in, default out"),
    row("R3c", "one of two Relays dies: restored within BGP's time"),
    row("R3d", "a million routes in one Relay, and thousands of updates a second"),
    // The deprecated model.
    row("T1", "legacy mode relays with the client's link-layer address"),
    row("T2", "legacy mode: only the central server gives leases"),
    row("T3", "legacy mode passes the central server's Reply on"),
    row("T4", "legacy mode learns entries from the Relay-reply only"),
    row("T5", "legacy mode keeps a stale route until its timer; the default mode does not"),
    row("T6", "legacy mode has no second Server; the default mode has"),
    row("T7", "a Relay-forward from an unknown node is discarded"),
    row("U1", "two central servers are refused in legacy mode"),
    row("U2", "the central server delegates"),
    row("U3", "in legacy mode Clients form the same addresses"),
    row("U4", "in legacy mode a Client lives by its RS"),
    // Topics.
    row("V1", "DHCPv6 service model and link-local addresses (E and F rows)"),
    row("V2", "ND mobility signalling (K5, L2, L3)"),
    row("V3", "mobility inside, Internet-wide and by proxy (L, M, N rows)"),
    row("V4", "capability discovery (O rows)"),
    row("V5", "control and forwarding apart (P rows)"),
    // Sizes and robustness.
    row("W1", "1500 bytes always pass: whole, in two tunnel fragments, or by Packet Too Big above"),
    row("W2", "a probe that is answered ends fragmentation, a Packet Too Big brings it back"),
    row("W3", "reassembly: no mix of packets, bounded memory"),
    row("W4", "control messages of several fragments work; ND with a fragment header is ignored"),
    row(
        "W5",
        "forged unreachables change nothing; real ones lead to solicitations, then the Server",
    ),
    row("W6", "an error that leaves the link has a global source and a right checksum"),
    row("W7", "no bytes crash a node, and strangers get no more bytes back than they sent"),
];
