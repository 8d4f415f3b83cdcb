/* Reading inner packets. All lengths are bounds that the verifier can follow. */
#ifndef AERO_PACKET_H
#define AERO_PACKET_H

#include "table.h"

#define NEXT (-1) /* not ours: the next program, then the stack */
#define DROP 2

struct inner {
	struct inner_address source;
	struct inner_address destination;
	__u32 length; /* by its own header */
	__u8 traffic_class;
	__u8 hop_limit;
	__u8 protocol;
	__u8 fragment;
};

enum parsed { DATA, CONTROL, BAD };

/* Makes `length` bytes of the packet readable, or as many as there are. */
inline_always void pull(struct __sk_buff *skb, __u32 length)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	if (data + length > end) {
		__u32 whole = skb->len;
		bpf_skb_pull_data(skb, whole < length ? whole : length);
	}
}

inline_always int link_local(const __u32 *a)
{
	return (a[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* Addresses of the link's own, which are looked up by another rule (section 3.5 of the draft). */
inline_always int of_the_link(const struct inner_address *a)
{
	return a->family == 6 && link_local(a->word);
}

/*
 * Reads the headers of an inner packet at `at`, and tells what passes between AERO nodes
 * themselves from what is a user's: as `protocol::wire::classify`.
 */
inline_always int parse(struct __sk_buff *skb, __u32 at, struct inner *in)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u8 *first = data + at;
	if ((void *)(first + 1) > end)
		return BAD;
	__builtin_memset(in, 0, sizeof *in);
	if (*first >> 4 == 6) {
		struct ipv6hdr *h = data + at;
		if ((void *)(h + 1) > end)
			return BAD;
		in->source.family = in->destination.family = 6;
		__builtin_memcpy(in->source.word, &h->saddr, 16);
		__builtin_memcpy(in->destination.word, &h->daddr, 16);
		in->length = sizeof *h + bpf_ntohs(h->payload_len);
		in->traffic_class = (__u8)(bpf_ntohl(*(__be32 *)h) >> 20);
		in->hop_limit = h->hop_limit;
		in->protocol = h->nexthdr;
		in->fragment = h->nexthdr == IPPROTO_FRAGMENT;
		__u32 *s = in->source.word, *d = in->destination.word;
		int unspecified = !(s[0] | s[1] | s[2] | s[3]);
		int to_link = link_local(d) || (d[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
		return (link_local(s) || unspecified) && to_link ? CONTROL : DATA;
	}
	if (*first >> 4 == 4) {
		struct iphdr *h = data + at;
		if ((void *)(h + 1) > end)
			return BAD;
		in->source.family = in->destination.family = 4;
		in->source.word[0] = h->saddr;
		in->destination.word[0] = h->daddr;
		in->length = bpf_ntohs(h->tot_len);
		in->traffic_class = h->tos;
		in->hop_limit = h->ttl;
		in->protocol = h->protocol;
		in->fragment = !!(h->frag_off & bpf_htons(0x3fff));
		return DATA;
	}
	return BAD;
}

/* Ports of the inner packet at `at`, as one word; 0 where there are none to see. */
inline_always __u32 ports_of(struct __sk_buff *skb, __u32 at, const struct inner *in)
{
	__u32 ports = 0;
	if (in->fragment || (in->protocol != IPPROTO_TCP && in->protocol != IPPROTO_UDP))
		return 0;
	if (in->source.family == 6)
		at += sizeof(struct ipv6hdr);
	else
		at += sizeof(struct iphdr); /* options are rare; such packets share a key */
	bpf_skb_load_bytes(skb, at, &ports, sizeof ports);
	return ports;
}

/* Lowers the hop limit of the inner packet at `at`, as a router does. */
inline_always int lower_hop_limit(struct __sk_buff *skb, __u32 at, __u32 family)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	if (family == 6) {
		struct ipv6hdr *h = data + at;
		if ((void *)(h + 1) > end)
			return -1;
		h->hop_limit--;
		return 0;
	}
	struct iphdr *h = data + at;
	if ((void *)(h + 1) > end)
		return -1;
	/* RFC 1141: one less in the upper byte of a word. */
	__u32 check = h->check + (__u32)bpf_htons(0x0100);
	h->check = (__u16)(check + (check >= 0xffff));
	h->ttl--;
	return 0;
}

/* RFC 6040 section 4.2: congestion that the outer header has met. -1: to be dropped. */
inline_always int mark_congestion(struct __sk_buff *skb, __u32 at, const struct inner *in)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u8 ecn = in->traffic_class & 3;
	if (ecn == 3)
		return 0;
	if (ecn == 0)
		return -1;
	if (in->source.family == 6) {
		struct ipv6hdr *h = data + at;
		if ((void *)(h + 1) > end)
			return -1;
		*(__be32 *)h |= bpf_htonl(3 << 20);
		return 0;
	}
	struct iphdr *h = data + at;
	if ((void *)(h + 1) > end)
		return -1;
	__u32 check = h->check + (__u32)bpf_htons((__u16)(0xfffb + ecn));
	h->check = (__u16)(check + (check >> 16));
	h->tos |= 3;
	return 0;
}

#endif
