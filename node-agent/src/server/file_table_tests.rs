use super::*;

const GOOD: &str = "\
servicePrefixes: [2001:db8::/32]
clients:
- duid: 6ba7b810-9dad-11d1-80b4-00c04fd430c8
  name: laptop
  prefixes: [2001:db8:0:1::/64]
  addresses: [192.0.2.1, '::ffff:192.0.2.2']
- duid: 00:03:00:01:02:42:ac:11:00:02
  prefixes:
  - 2001:db8:0:2::/64
  - 2001:db8:0:100::/56
  addresses: [2001:db8:77::1]
";

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

#[test]
fn a_table_names_clients_by_uuid_or_by_the_bytes_of_their_duid() {
    let table = FileTable::parse(GOOD).unwrap();
    assert_eq!(table.lease, Duration::from_secs(40));
    assert_eq!(table.authentication, Authentication::NodeAddress);
    let first = &table.entries[&net("2001:db8:0:1::/64")];
    assert!(first.client.uuid().is_some());
    assert_eq!(first.addresses.len(), 2);
    assert!(first.addresses.contains(&"192.0.2.2".parse::<IpAddr>().unwrap()));
    let second = &table.entries[&net("2001:db8:0:100::/56")];
    assert_eq!(second.client.as_bytes(), [0, 3, 0, 1, 2, 0x42, 0xac, 0x11, 0, 2]);
    assert_eq!(second, &table.entries[&net("2001:db8:0:2::/64")]);
}

#[test]
fn a_client_with_a_key_needs_no_addresses_and_its_keys_are_read_from_beside_the_table() {
    let dir = tempfile::tempdir().unwrap();
    let (path, key) = (dir.path().join("table.yaml"), dir.path().join("laptop.key"));
    let text = "servicePrefixes: [2001:db8::/32]\nclients:\n\
                - {duid: 000400112233, prefixes: [2001:db8:0:1::/64], key: laptop.key}\n";
    std::fs::write(&path, text).unwrap();
    assert!(format!("{:#}", read(&path).unwrap_err()).contains("laptop.key"));
    std::fs::write(&key, format!("7 {}\n", "ab".repeat(32))).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&key, private).unwrap();
    let table = read(&path).unwrap();
    let client = duid::parse("000400112233").unwrap();
    assert_eq!(table.keys[&client], [Key::new(7, [0xab; 32])]);
    assert!(table.entries.values().all(|e| e.addresses.is_empty()));
    // A key that is changed is noticed, and the lease is not the row's that it was.
    let before = stamps(&path, &table);
    std::fs::write(&key, format!("7 {}\n8 {}\n", "ab".repeat(32), "cd".repeat(32))).unwrap();
    assert_ne!(stamps(&path, &table), before);
    assert_eq!(read(&path).unwrap().entries, table.entries, "leases go on");
    let shown = format!("{table:?}");
    assert!(!shown.contains("171") && !shown.to_lowercase().contains("abab"), "{shown}");
}

#[test]
fn json_is_as_good_as_yaml_and_digits_alone_are_a_duid_too() {
    let table = FileTable::parse(
        r#"{"servicePrefixes": ["2001:db8::/32"], "authentication": "None", "leaseSeconds": 10,
            "clients": [{"duid": "000400112233", "prefixes": ["2001:db8:0:1::/64"]}]}"#,
    )
    .unwrap();
    assert_eq!(table.lease, Duration::from_secs(10));
    let plain = FileTable::parse(
        "servicePrefixes: [2001:db8::/32]\nauthentication: None\nleaseSeconds: 10\nclients:\n\
         - {duid: 000400112233, prefixes: [2001:db8:0:1::/64]}\n",
    );
    assert_eq!(plain, Ok(table));
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    let cases = [
        ("2001:db8:0:2::/64", "2001:db8:0:1::/64", "line 9: 2001:db8:0:1::/64 overlaps"),
        ("2001:db8:0:100::/56", "2001:db8::/40", "line 10: 2001:db8::/40 overlaps"),
        ("2001:db8:0:2::/64", "2001:db9:0:2::/64", "line 9: 2001:db9:0:2::/64 is in no service"),
        ("2001:db8:0:2::/64", "2001:db8:0:2::/65", "line 9: 2001:db8:0:2::/65 cannot be"),
        ("2001:db8:0:2::/64", "2001:db8:0:2::1/64", "line 9: 2001:db8:0:2::1/64 has bits"),
        ("2001:db8:0:2::/64", "nonsense", "line 9: \"nonsense\" is no prefix"),
        ("00:03:00:01", "00:zz:00:01", "line 7: \"00:zz"),
        (
            "00:03:00:01:02:42:ac:11:00:02",
            "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
            "line 7: this client is at line 3 already",
        ),
        ("192.0.2.1", "192.0.2.256", "line 6: \"192.0.2.256\" is no IP"),
        (
            "  addresses: [2001:db8:77::1]\n",
            "",
            "line 7: the client has neither a key nor addresses",
        ),
        ("  name: laptop", "  nome: laptop", "line 4: "),
        ("servicePrefixes: [", "servicePrefixes: {", "line 1: "),
        ("clients:", "leaseSeconds: 3\nclients:", "line 2: leaseSeconds is at least"),
        ("clients:", "authentication: Maybe\nclients:", "line 2: "),
    ];
    for (from, to, expected) in cases {
        assert!(GOOD.contains(from), "{from}");
        let error = FileTable::parse(&GOOD.replace(from, to)).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{from} -> {to}: {error}");
        assert_eq!(error.matches("line ").count(), expected.matches("line ").count(), "{error}");
    }
}

#[test]
fn a_row_that_stays_keeps_its_lease_and_one_that_changes_or_goes_does_not() {
    use aero_dataplane::{ForwardingTable, Snapshot};
    use aero_protocol::address::{BOOTSTRAP_ADDRESS, LinkLayerAddress, ServerId};
    use aero_protocol::server::Config;
    use aero_protocol::wire::dhcpv6::{IaPd, Kind, Message};
    use aero_protocol::wire::ip;

    struct Nowhere;
    impl ForwardingTable for Nowhere {
        fn take_used(&self) -> Vec<(IpNet, IpNet)> {
            Vec::new()
        }
        fn apply(&self, _: &aero_protocol::forwarding::Change) {}
        fn counters(&self) -> Snapshot {
            aero_dataplane::Counters::default().snapshot()
        }
    }
    let table = FileTable::parse(GOOD).unwrap();
    let ip = "192.0.2.11".parse().unwrap();
    let engine = Server::new(Config {
        id: ServerId::from_underlay(ip),
        duid: Duid::from_uuid(Uuid::nil()),
        asps: Vec::new(),
        lease: Duration::from_secs(40),
        authentication: Authentication::NodeAddress,
    });
    let (driver, _outgoing) = Driver::new(engine, std::sync::Arc::new(Nowhere), drop);
    let mut applied = Applied::default();
    applied.apply(&table, &driver);
    let solicit = |client: &Duid, from: &str| {
        let mut m = Message::new(Kind::Solicit, [1, 2, 3]);
        m.client = Some(client.clone());
        m.rapid_commit = true;
        m.ia_pd.push(IaPd { id: 1, ..IaPd::default() });
        let to = ("ff02::1:2".parse().unwrap(), 547);
        let packet = ip::udp((BOOTSTRAP_ADDRESS, 546), to, &m.emit().unwrap()).unwrap();
        let from = LinkLayerAddress::new(from.parse().unwrap(), 8060);
        driver.with(|engine, now| engine.handle_packet(from, &packet, now));
    };
    let held = || driver.with(|e, _| e.neighbors().map(|n| n.prefix).collect::<Vec<_>>());
    let laptop = table.entries[&net("2001:db8:0:1::/64")].client.clone();
    let other = table.entries[&net("2001:db8:0:2::/64")].client.clone();
    solicit(&laptop, "192.0.2.9");
    assert!(held().is_empty(), "not from an address that the row does not name");
    solicit(&laptop, "192.0.2.1");
    solicit(&other, "2001:db8:77::1");
    assert_eq!(held().len(), 3);

    applied.apply(&table, &driver);
    assert_eq!(held().len(), 3, "nothing has changed");
    let changed = GOOD.replace("192.0.2.1,", "192.0.2.3,").replace("  - 2001:db8:0:100::/56\n", "");
    applied.apply(&FileTable::parse(&changed).unwrap(), &driver);
    assert_eq!(held(), [net("2001:db8:0:2::/64")]);
}
