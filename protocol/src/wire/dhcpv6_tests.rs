use super::*;
use crate::address::Epoch;
use crate::wire::aero_options::Claim;
use uuid::Uuid;

fn full() -> Message {
    let mut m = Message::new(Kind::Reply, [1, 2, 3]);
    m.client = Some(Duid::from_uuid(Uuid::from_u128(1)));
    m.server = Some(Duid::from_uuid(Uuid::from_u128(2)));
    m.ia_pd.push(IaPd {
        id: 1,
        t1: 20,
        t2: 32,
        prefixes: vec![
            Prefix { prefix: "2001:db8:0:1::/64".parse().unwrap(), preferred: 40, valid: 40 },
            Prefix { prefix: "192.0.2.32/28".parse().unwrap(), preferred: 40, valid: 40 },
        ],
        status: Some(Status::new(StatusCode::Success, "")),
    });
    m.ia_na.push(IaNa {
        id: 5,
        has_addresses: false,
        status: Some(Status::new(StatusCode::NoAddrsAvail, "prefixes only")),
    });
    m.status = Some(Status::new(StatusCode::UnspecFail, "why not"));
    m.rapid_commit = true;
    m.preference = Some(255);
    m.elapsed = Some(7);
    m.requested = vec![OPTION_VENDOR_OPTS, OPTION_SOL_MAX_RT];
    m.aero = vec![
        AeroOption::LinkRequest { link_id: 1, preference: 3 },
        AeroOption::Claim(Claim { epoch: Epoch(4), holder: Uuid::from_u128(3) }),
    ];
    m
}

#[test]
fn a_message_survives_the_way_with_all_that_is_in_it() {
    let message = full();
    assert_eq!(Message::parse(&message.emit().unwrap()), Ok(message));
}

#[test]
fn a_message_cut_anywhere_is_refused_or_has_lost_whole_options_only() {
    let whole = full().emit().unwrap();
    for n in 0..whole.len() {
        if let Ok(m) = Message::parse(&whole[..n]) {
            assert!(m.emit().unwrap().len() <= n, "cut at {n}");
        }
    }
}

#[test]
fn what_makes_dhcproto_panic_or_misread_is_refused_before_it() {
    let with = |option: &[u8]| {
        let mut bytes = vec![1, 0, 0, 1];
        bytes.extend_from_slice(option);
        Message::parse(&bytes)
    };
    assert_eq!(with(&[0, 13, 0, 1, 0]), Err(WireError::BadLength), "status of one byte");
    assert_eq!(with(&[0, 16, 0, 3, 0, 0, 0]), Err(WireError::BadLength), "vendor class");
    assert_eq!(with(&[0, 17, 0, 3, 0, 0, 0]), Err(WireError::BadLength), "vendor options");
    assert_eq!(with(&[0, 7, 0, 2, 0, 0]), Err(WireError::BadLength), "preference of two");
    assert_eq!(with(&[0, 14, 0, 1, 0]), Err(WireError::BadLength), "rapid commit of one");
    assert_eq!(with(&[0, 1, 0, 2, 0, 4]), Err(WireError::BadLength), "DUID of two bytes");
    // IA_TA in IA_TA in IA_TA ...: unbounded recursion in dhcproto.
    let mut nested = Vec::new();
    for _ in 0..900 {
        let mut outer = vec![0, 4];
        outer.extend(u16::try_from(nested.len() + 4).unwrap().to_be_bytes());
        outer.extend([0; 4]);
        outer.extend(&nested);
        nested = outer;
    }
    assert_eq!(with(&nested), Err(WireError::TooDeep));
    let mut prefix = vec![0, 25, 0, 41, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 26, 0, 25];
    prefix.extend([0, 0, 0, 1, 0, 0, 0, 1, 129]);
    prefix.extend([0; 16]);
    assert_eq!(with(&prefix), Err(WireError::BadValue), "prefix length 129");
    prefix[28] = 64;
    assert!(with(&prefix).is_ok());
    prefix[23] = 2;
    assert_eq!(with(&prefix), Err(WireError::BadValue), "preferred above valid");
}

#[test]
fn relay_messages_and_double_identifiers_are_refused() {
    assert_eq!(Message::parse(&[12, 0, 0, 1]), Err(WireError::Unsupported));
    assert_eq!(Message::parse(&[13, 0, 0, 1]), Err(WireError::Unsupported));
    let mut bytes = full().emit().unwrap();
    bytes.extend([0, 1, 0, 3, 0, 4, 9]);
    assert_eq!(Message::parse(&bytes), Err(WireError::BadValue));
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        let _ = Message::parse(&bytes);
    }

    #[test]
    fn no_mutation_of_a_good_message_makes_the_parser_panic(
        at in 0usize..200, value in 0u8..=255, cut in 0usize..300,
    ) {
        let mut bytes = full().emit().unwrap();
        let n = bytes.len();
        bytes[at % n] = value;
        bytes.truncate(cut.max(1));
        if let Ok(m) = Message::parse(&bytes) {
            let again = m.emit().unwrap();
            proptest::prop_assert_eq!(Message::parse(&again), Ok(m));
        }
    }
}
