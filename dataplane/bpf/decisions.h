/*
 * What the table and the kernel have said for a pair of addresses, kept by each processor for the
 * packets that follow: most of them then are spared all look-ups. A decision counts as long as the
 * process has not changed the table since, none of the entries has run out, and it is younger than
 * DECISION_AGE: by then a packet asks again, which shows that a path is in use.
 */
#ifndef AERO_DECISIONS_H
#define AERO_DECISIONS_H

#include "tunnel.h"

#define DECISION_AGE WAY_AGE
#define DECISIONS_BITS 9

/* Of a program's own functions: neither NEXT nor any other verdict, the packet goes on. */
#define DECIDED 100

/* Where a pod's packets to an address go. */
struct departure {
	__u64 until;
	__u32 table; /* the configuration's when it was decided */
	__u32 ifindex; /* the pod's */
	__u32 source[4];
	__u32 destination[4];
	struct l2 to;
	struct way way;
	__u32 ip_in_ip;
};

/* What is done with packets from a neighbour that were allowed. */
struct arrival {
	__u64 until;
	__u32 table;
	__u32 slot; /* the neighbour's */
	struct l2 from;
	struct inner_address source;
	struct inner_address destination;
	struct route route;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1 << DECISIONS_BITS);
	__type(key, __u32);
	__type(value, struct departure);
} departures SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1 << DECISIONS_BITS);
	__type(key, __u32);
	__type(value, struct arrival);
} arrivals SEC(".maps");

inline_always __u32 place_of(const struct inner *in)
{
	const __u32 *s = in->source.word, *d = in->destination.word;
	__u32 all = s[0] ^ s[1] ^ s[2] ^ s[3] ^ d[0] ^ d[1] ^ d[2] ^ d[3];
	return all * 0x9e3779b1U >> (32 - DECISIONS_BITS);
}

/* The place of a packet's decision. */
inline_always struct departure *departure_of(const struct inner *in)
{
	__u32 place = place_of(in);
	return bpf_map_lookup_elem(&departures, &place);
}

/* Whether the decision there is about this packet, and counts. */
inline_always int departs(const struct departure *d, const struct config *c,
			  const struct inner *in, __u32 ifindex, __u64 now)
{
	return d->until > now && d->table == c->table && d->ifindex == ifindex &&
	       same_ip(d->source, in->source.word) &&
	       same_ip(d->destination, in->destination.word);
}

inline_always struct arrival *arrival_of(const struct inner *in)
{
	__u32 place = place_of(in);
	return bpf_map_lookup_elem(&arrivals, &place);
}

inline_always int arrives(const struct arrival *a, const struct config *c, const struct inner *in,
			  const struct l2 *from, __u64 now)
{
	return a->until > now && a->table == c->table && same_l2(&a->from, from) &&
	       a->source.family == in->source.family &&
	       same_ip(a->source.word, in->source.word) &&
	       same_ip(a->destination.word, in->destination.word);
}

#endif
