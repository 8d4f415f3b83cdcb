//! The forwarder in eBPF with real packets, in network namespaces. Needs root, `ip` and a kernel
//! with eBPF.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(missing_docs)]

mod decisions;
mod equivalence;
mod ip_in_ip;
mod moves;
mod narrow;
mod net;
mod node;
mod outlives;
mod userspace;
mod ways;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

type Case = fn() -> anyhow::Result<()>;

const CASES: &[(&str, Case)] = &[
    ("every_packet_meets_the_fate_that_the_table_says", equivalence::stack),
    ("every_packet_meets_the_same_fate_on_the_short_way_to_a_pod", equivalence::short),
    ("the_forwarder_in_user_space_says_the_same", equivalence::userspace),
    ("programs_attached_by_clsact_say_the_same", equivalence::clsact),
    ("what_the_programs_leave_alone_is_forwarded_in_user_space", equivalence::left_alone),
    ("a_direct_path_is_for_one_pair_and_tells_that_it_is_wanted_and_used", equivalence::direct),
    ("an_entry_ends_at_its_time_with_nobody_to_remove_it", equivalence::expiry),
    ("a_change_of_the_table_counts_from_the_next_packet_on", decisions::changed),
    ("no_packet_passes_by_a_route_or_a_sender_that_has_ended", decisions::ended),
    ("a_way_that_changes_is_followed_at_once", ways::followed),
    ("long_segments_get_through_an_underlay_with_a_narrow_path", narrow::long_segments),
    ("agent_and_server_of_one_node_hand_packets_over_in_the_kernel", outlives::one_node),
    ("super_packets_go_by_a_server_from_one_family_to_the_other", outlives::two_families),
    ("answers_to_a_service_go_back_the_way_that_translates_them", outlives::service),
    ("traffic_goes_on_when_the_process_is_killed_and_when_the_next_takes_over", outlives::killed),
    ("an_upgrade_to_another_layout_of_the_maps_loses_no_packet", outlives::upgraded),
    ("ip_in_ip_is_found_by_a_probe_and_given_up_within_a_second", ip_in_ip::found_and_given_up),
    ("without_an_answer_to_a_probe_nothing_goes_without_udp", ip_in_ip::unproved),
    (
        "ip_in_ip_is_no_way_in_for_forged_sources_and_leaves_others_tunnels_alone",
        ip_in_ip::no_way_in,
    ),
    ("a_move_loses_nothing_where_the_old_node_lives", moves::few),
    ("streams_go_through_forwarders_in_user_space_as_super_packets", userspace::streams),
    ("removal_leaves_nothing_attached_and_nothing_pinned", outlives::removal),
];

fn main() {
    if let Some(role) = std::env::var_os(node::CHILD) {
        node::child(&role.into_string().unwrap());
    }
    // A BPF file system of our own, for us and the processes that we start.
    unshare(CloneFlags::CLONE_NEWNS).expect("these tests need root");
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).unwrap();
    let args = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let trial = |(name, case): &(&'static str, Case)| {
        let case = *case;
        Trial::test(*name, move || case().map_err(|e| Failed::from(format!("{e:#}"))))
    };
    libtest_mimic::run(&args, CASES.iter().map(trial).collect()).exit();
}
