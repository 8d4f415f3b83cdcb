//! The product on a real Kubernetes.
//!
//! One lab of three nodes for most tests, made by the first that needs it and taken away at the
//! end; they run in the order of the list, one at a time. With `AERO_E2E_KUBECONFIG` set, those
//! that need no lab run against that cluster, where AERO has to be installed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod cases;

use std::path::PathBuf;

use cases::{
    Context, api, cli, cni, direct, lab, moves, pods, relays, services, underlay, upgrade,
};
use libtest_mimic::{Arguments, Failed, Trial};

type Case = fn(&Context) -> anyhow::Result<()>;

/// Tests that need the lab, in order: what disturbs most comes last.
const LAB: &[(&str, Case)] = &[
    ("the_lab_leaves_nothing_behind_even_when_it_was_killed_half_way", lab::leaves_nothing),
    ("the_default_install_serves_within_a_minute", lab::installs),
    ("kubectl_aero_finds_a_healthy_system_healthy_and_shows_the_way_of_a_packet", cli::healthy),
    ("helm_test_probes_between_all_nodes", cli::helm_test),
    ("every_kind_can_be_waited_for_by_its_ready_condition", cli::waits),
    ("two_servers_give_the_same_prefix", moves::two_servers_agree),
    ("a_pod_that_is_not_enrolled_keeps_its_primary_network_untouched", moves::not_enrolled),
    ("bad_input_to_the_plugin_gets_the_specifications_error_codes", cni::error_codes),
    ("the_end_of_a_pod_does_not_wait_for_an_agent_that_hangs", pods::agent_away),
    (
        "a_start_that_is_tried_a_hundred_times_ends_with_one_prefix_and_one_interface",
        pods::half_way,
    ),
    ("ninety_pods_start_at_once", pods::burst),
    ("cnitool_drives_the_plugin_as_a_sole_delegate", cni::cnitool),
    ("services_work_from_and_to_enrolled_pods_in_both_modes_of_kube_proxy", services::both_modes),
    (
        "pods_on_different_nodes_talk_straight_and_the_servers_counters_stand_still",
        direct::counters_stand_still,
    ),
    ("an_underlay_that_stops_carrying_ip_in_ip_gets_udp_within_a_second", direct::without_ip_in_ip),
    ("with_direct_paths_cut_pods_talk_by_the_servers_and_straight_again_afterwards", direct::cut),
    (
        "a_move_whose_advertisements_are_all_lost_heals_within_three_seconds",
        direct::move_without_advertisements,
    ),
    ("a_drained_pod_keeps_its_prefix_and_is_reached_within_a_second_of_ready", moves::drains),
    ("kubectl_aero_lists_the_moves_with_their_gaps", cli::moves),
    ("an_agent_that_is_replaced_recovers_its_attachments", moves::agent_replaced),
    ("without_an_api_server_traffic_goes_on_and_the_plugin_says_what_is_wrong", cni::no_api),
    ("a_pod_of_a_node_that_lost_power_keeps_its_prefix_on_another", moves::power_off),
    ("at_no_time_did_two_pods_hold_one_prefix", moves::never_two_holders),
    ("kubectl_aero_names_the_part_that_fails_and_what_to_do", cli::names_what_fails),
    ("an_upgrade_and_a_rollback_keep_the_cni_configuration_and_the_traffic", upgrade::upgrade),
    ("an_uninstall_leaves_nothing_on_any_node_and_keeps_what_is_the_users", lab::uninstall),
    ("on_an_ipv4_underlay_a_moved_pod_keeps_its_prefix_and_is_reached", underlay::ipv4),
    ("on_an_ipv6_underlay_a_moved_pod_keeps_its_prefix_and_is_reached", underlay::ipv6),
    (
        "relays_have_the_routes_of_all_clients_and_what_is_bad_is_refused_with_its_reason",
        relays::routes,
    ),
    (
        "routers_outside_the_relays_have_the_service_prefix_and_no_other_and_what_is_bad_is_refused",
        relays::fabric,
    ),
    (
        "whatever_dies_of_servers_and_relays_pods_are_reached_again_within_the_bound_and_all_is_as_before",
        relays::failures,
    ),
    ("without_relays_nothing_of_them_is_left", relays::ended),
];

/// Tests that need a cluster with AERO, whichever.
const ANY: &[(&str, Case)] = &[
    ("the_chart_passes_helm_lint_and_refuses_a_misspelt_value", api::chart),
    ("the_api_server_refuses_bad_clients_with_a_sentence_that_helps", api::bad_clients),
    ("a_prefix_outside_the_link_is_refused_by_condition_event_and_pod_start", api::outside),
    ("a_prefix_of_another_is_refused_and_the_holder_is_named", api::held),
    ("nobody_but_the_operator_writes_the_annotations_of_pods", api::annotations),
];

fn main() {
    let args = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let other = std::env::var_os("AERO_E2E_KUBECONFIG").map(PathBuf::from);
    let lab = other.is_none();
    let context: &'static Context = Box::leak(Box::new(Context::new(other)));
    let trial = |(name, case): &(&'static str, Case)| {
        let case = *case;
        Trial::test(*name, move || case(context).map_err(|e| Failed::from(format!("{e:#}"))))
    };
    let mut trials = Vec::new();
    if lab {
        // Those for any cluster come while the lab is whole.
        let (first, rest) = LAB.split_at(7);
        trials.extend(first.iter().chain(ANY).chain(rest).map(trial));
    } else {
        trials.extend(ANY.iter().map(trial));
    }
    let conclusion = libtest_mimic::run(&args, trials);
    context.end();
    conclusion.exit();
}
