//! Cutting packets up: the fragments of the tunnel (Type 2 of draft -48 section 3.4, cut by the
//! rules of section 3.10 and RFC 8200 section 4.5), and those of an inner IPv4 packet (RFC 791).

use super::{FRAGMENT_PACKET, encaps};
use crate::wire::encapsulation::{FRAGMENT_SHIM, FragmentShim, next_header_of};

/// The fragments of a packet in order: the shim to put before each, and its data. Nothing is
/// copied.
#[derive(Debug, Clone)]
pub struct TunnelFragments<'a> {
    rest: &'a [u8],
    next: FragmentShim,
    piece: usize,
}

impl<'a> TunnelFragments<'a> {
    /// Cuts `packet`, an IP packet of at most 64 KiB, so that no outer packet is larger than 1024
    /// bytes. One of up to 1500 bytes has two fragments at most. `None` if it is no IP packet.
    pub fn new(packet: &'a [u8], ipv6_underlay: bool, identification: u32) -> Option<Self> {
        u16::try_from(packet.len()).ok()?;
        let next = FragmentShim {
            next_header: next_header_of(packet)?,
            offset: 0,
            more: true,
            identification,
        };
        Some(Self { rest: packet, next, piece: (FRAGMENT_PACKET - encaps(ipv6_underlay)) & !7 })
    }
}

impl<'a> Iterator for TunnelFragments<'a> {
    type Item = ([u8; FRAGMENT_SHIM], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let (data, rest) = self.rest.split_at_checked(self.piece).unwrap_or((self.rest, &[]));
        self.rest = rest;
        self.next.more = !rest.is_empty();
        let shim = self.next.emit();
        // Fits: the whole packet has at most 64 KiB.
        self.next.offset = self.next.offset.saturating_add(u16::try_from(data.len()).unwrap_or(0));
        Some((shim, data))
    }
}

/// Largest inner IPv4 fragment, where a packet above 1500 bytes may be fragmented: 1024 less
/// ENCAPS.
pub const fn inner_fragment_size(ipv6_underlay: bool) -> usize {
    FRAGMENT_PACKET - encaps(ipv6_underlay)
}

/// Fragments an IPv4 packet into packets of at most `size` bytes, each given to `each` in a
/// buffer that is used again. False, and nothing done, if it is no whole IPv4 packet, or `size`
/// leaves no room.
pub fn fragment_ipv4(packet: &[u8], size: usize, mut each: impl FnMut(&[u8])) -> bool {
    let Some((header, data)) = split_ipv4(packet) else { return false };
    let field = header.get(6..8).and_then(|f| f.try_into().ok()).map_or(0, u16::from_be_bytes);
    let (was_more, mut offset) = (field & 0x2000 != 0, usize::from(field & 0x1fff) * 8);
    // RFC 791: later fragments have only the options that are marked to be copied.
    let later = copied_options(header);
    let mut buffer = Vec::with_capacity(size);
    let mut rest = data;
    let mut head = header;
    while !rest.is_empty() {
        let room = size.saturating_sub(head.len()) & !7;
        if room == 0 {
            return false;
        }
        let last = rest.len() + head.len() <= size;
        let take = if last { rest.len() } else { room };
        let Some((piece, behind)) = rest.split_at_checked(take) else { return false };
        buffer.clear();
        buffer.extend_from_slice(head);
        buffer.extend_from_slice(piece);
        let more = !last || was_more;
        if !finish_header(&mut buffer, head.len(), offset, more) {
            return false;
        }
        each(&buffer);
        offset += take;
        rest = behind;
        head = &later;
    }
    true
}

fn split_ipv4(packet: &[u8]) -> Option<(&[u8], &[u8])> {
    let length =
        super::header::length(packet).filter(|_| packet.first().is_some_and(|b| b >> 4 == 4))?;
    let header = usize::from(packet.first()? & 0xf) * 4;
    packet.get(..length)?.split_at_checked(header)
}

fn copied_options(header: &[u8]) -> Vec<u8> {
    let mut out = header.get(..20).unwrap_or_default().to_vec();
    let mut options = header.get(20..).unwrap_or_default();
    while let [kind, rest @ ..] = options {
        let length = match (kind, rest.first()) {
            (0, _) => break,
            (1, _) => 1,
            (_, Some(l)) if *l >= 2 => usize::from(*l),
            _ => break,
        };
        let Some((option, behind)) = options.split_at_checked(length) else { break };
        if kind & 0x80 != 0 {
            out.extend_from_slice(option);
        }
        options = behind;
    }
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// Length, offset and checksum of a fragment.
fn finish_header(packet: &mut [u8], header: usize, offset: usize, more: bool) -> bool {
    let (Ok(total), Ok(words), Ok(units)) =
        (u16::try_from(packet.len()), u8::try_from(header / 4), u16::try_from(offset / 8))
    else {
        return false;
    };
    let Some(head) = packet.get_mut(..header) else { return false };
    let [first, _, l0, l1, _, _, f0, f1, _, _, c0, c1, ..] = head else { return false };
    *first = 0x40 | words;
    [*l0, *l1] = total.to_be_bytes();
    [*f0, *f1] = ((units & 0x1fff) | if more { 0x2000 } else { 0 }).to_be_bytes();
    [*c0, *c1] = [0, 0];
    let sum = etherparse::checksum::Sum16BitWords::new().add_slice(head).ones_complement();
    if let Some(field) = head.get_mut(10..12) {
        field.copy_from_slice(&sum.to_ne_bytes());
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::encapsulation::{Payload, demux};
    use etherparse::Ipv4HeaderSlice;
    use proptest::prelude::*;

    #[test]
    fn up_to_1500_bytes_make_exactly_two_fragments_the_first_not_above_1024_outside() {
        for ipv6_underlay in [false, true] {
            for length in 1280 - encaps(ipv6_underlay) + 1..=1500 {
                let mut packet = vec![7; length];
                packet[0] = 0x60;
                let pieces: Vec<_> =
                    TunnelFragments::new(&packet, ipv6_underlay, 9).unwrap().collect();
                let [(shim0, data0), (shim1, data1)] = &pieces[..] else { panic!("{length}") };
                assert!(data0.len() + encaps(ipv6_underlay) <= 1024);
                assert!(data1.len() <= data0.len());
                assert_eq!(data0.len() % 8, 0);
                let first =
                    FragmentShim { next_header: 41, offset: 0, more: true, identification: 9 };
                assert_eq!(*shim0, first.emit());
                let offset = u16::try_from(data0.len()).unwrap();
                assert_eq!(*shim1, FragmentShim { offset, more: false, ..first }.emit());
                assert_eq!([*data0, *data1].concat(), packet);
            }
        }
    }

    #[test]
    fn the_first_fragment_has_984_bytes_over_ipv4_and_968_over_ipv6() {
        let packet = [0x60; 1500];
        for (ipv6_underlay, first) in [(false, 984), (true, 968)] {
            let mut pieces = TunnelFragments::new(&packet, ipv6_underlay, 9).unwrap();
            assert_eq!(pieces.next().unwrap().1.len(), first);
        }
        assert!(TunnelFragments::new(&[0; 1500], false, 9).is_none(), "no IP packet");
    }

    #[test]
    fn a_control_message_of_3000_bytes_has_four_fragments_or_the_fewest_that_there_can_be() {
        let packet = [0x60; 3000];
        let pieces: Vec<_> = TunnelFragments::new(&packet, false, 9).unwrap().collect();
        assert_eq!(pieces.len(), 3000usize.div_ceil(984));
        assert!(pieces.iter().all(|(_, data)| data.len() + 36 <= 1024));
    }

    fn ipv4(length: usize, options: &[u8]) -> Vec<u8> {
        let header = 20 + options.len();
        let mut p = vec![0; length];
        p[0] = 0x40 | u8::try_from(header / 4).unwrap();
        p[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        p[4..6].copy_from_slice(&[0x12, 0x34]);
        p[8] = 64;
        p[9] = 17;
        p[12..20].copy_from_slice(&[10, 1, 0, 1, 10, 2, 0, 1]);
        p[20..header].copy_from_slice(options);
        for (n, b) in p[header..].iter_mut().enumerate() {
            *b = u8::try_from(n % 251).unwrap();
        }
        p
    }

    /// Puts inner fragments together by their own headers, in any order.
    fn whole(fragments: &[Vec<u8>]) -> Vec<u8> {
        let mut data = vec![];
        for f in fragments {
            let h = Ipv4HeaderSlice::from_slice(f).unwrap();
            assert_eq!(h.to_header().calc_header_checksum(), h.header_checksum());
            assert_eq!(h.identification(), 0x1234);
            let at = usize::from(h.fragments_offset().value()) * 8;
            let body = &f[usize::from(h.ihl()) * 4..];
            assert_eq!(usize::from(h.total_len()), f.len());
            data.resize(data.len().max(at + body.len()), 0);
            data[at..at + body.len()].copy_from_slice(body);
        }
        data
    }

    #[test]
    fn an_inner_ipv4_packet_is_cut_by_rfc_791_and_its_marked_options_are_copied() {
        // Copied: router alert (148). Not copied: record route (7).
        let options = [148, 4, 0, 0, 7, 7, 4, 1, 2, 3, 4, 0];
        let packet = ipv4(3000, &options);
        let mut fragments = Vec::new();
        assert!(fragment_ipv4(&packet, inner_fragment_size(false), |f| fragments.push(f.to_vec())));
        assert!(fragments.iter().all(|f| f.len() <= 988));
        assert_eq!(fragments[0][20..32], options);
        assert_eq!(fragments[1][0], 0x46);
        assert_eq!(fragments[1][20..24], [148, 4, 0, 0]);
        assert_eq!(whole(&fragments), packet[32..]);
        let more = |f: &[u8]| f[6] & 0x20 != 0;
        assert!(fragments[..fragments.len() - 1].iter().all(|f| more(f)));
        assert!(!more(&fragments[fragments.len() - 1]));
    }

    #[test]
    fn a_fragment_that_is_fragmented_again_keeps_its_place() {
        let mut packet = ipv4(2000, &[]);
        packet[6..8].copy_from_slice(&[0x20, 100]);
        let mut fragments = Vec::new();
        assert!(fragment_ipv4(&packet, 988, |f| fragments.push(f.to_vec())));
        assert!(fragments.iter().all(|f| f[6] & 0x20 != 0), "more were to come already");
        assert_eq!(whole(&fragments)[800..], packet[20..]);
        assert!(!fragment_ipv4(&packet[..1999], 988, |_| panic!("cut short")));
        assert!(!fragment_ipv4(&[0x60; 2000], 988, |_| panic!("IPv6")));
    }

    proptest! {
        #[test]
        fn tunnel_fragments_put_back_in_order_are_the_packet(
            length in 20usize..9000, ipv6_underlay: bool, id: u32,
        ) {
            let mut packet: Vec<u8> = (0..length).map(|n| u8::try_from(n % 255).unwrap()).collect();
            packet[0] = 0x45;
            let mut back = Vec::new();
            for (shim, data) in TunnelFragments::new(&packet, ipv6_underlay, id).unwrap() {
                let Ok(Payload::Fragment { shim, .. }) = demux(&shim) else { panic!() };
                prop_assert_eq!(usize::from(shim.offset), back.len());
                back.extend_from_slice(data);
                prop_assert_eq!(shim.more, back.len() < packet.len());
            }
            prop_assert_eq!(back, packet);
        }
    }
}
