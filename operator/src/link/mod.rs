//! AeroLink: the pools in effect and how full they are.

use std::collections::BTreeSet;

use aero_crds::{
    AcpMapping, AeroLink, AeroLinkStatus, Phase, PoolStatus, condition, set_condition,
};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Api, ResourceExt};

use crate::allocation::{EffectivePool, effective_pools};
use crate::context::{Context, apply_status};

/// Field manager of what this controller applies.
const MANAGER: &str = "aero-operator-link";

/// The status of a link: a pure function of what is observed.
pub fn status(
    link: &AeroLink,
    pools: &[EffectivePool],
    others: &[(String, Vec<EffectivePool>)],
    mappings: &[&AcpMapping],
    now: &Time,
) -> AeroLinkStatus {
    let generation = link.metadata.generation;
    let mut status = link.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    let (mut used, mut cooling) = (BTreeSet::new(), BTreeSet::new());
    for mapping in mappings {
        let Ok(prefix) = mapping.spec.prefix.parse::<IpNet>() else { continue };
        match mapping.status.as_ref().and_then(|s| s.phase) {
            Some(Phase::Cooling) => cooling.insert(prefix),
            _ => used.insert(prefix),
        };
    }
    let count = |set: &BTreeSet<IpNet>, pool: &EffectivePool| {
        i64::try_from(set.iter().filter(|p| pool.has_member(**p)).count()).unwrap_or(i64::MAX)
    };
    status.pools = pools
        .iter()
        .map(|pool| {
            let (in_use, cooling) = (count(&used, pool), count(&cooling, pool));
            let size = i64::try_from(pool.size()).unwrap_or(i64::MAX);
            PoolStatus {
                prefix: pool.prefix.to_string(),
                client_prefix_length: i32::from(pool.length),
                in_use,
                cooling,
                free: (size - in_use - cooling).max(0),
            }
        })
        .collect();
    status.in_use = status.pools.iter().map(|p| p.in_use).sum();
    let overlap = pools.iter().enumerate().find_map(|(n, a)| {
        let overlaps =
            |b: &EffectivePool| a.prefix.contains(&b.prefix) || b.prefix.contains(&a.prefix);
        let within = pools.iter().skip(n + 1).find(|b| overlaps(b));
        let own = within.map(|b| format!("pools {} and {} overlap", a.prefix, b.prefix));
        own.or_else(|| {
            others.iter().find_map(|(name, theirs)| {
                let b = theirs.iter().find(|b| overlaps(b))?;
                Some(format!("pool {} overlaps {} of link {name:?}", a.prefix, b.prefix))
            })
        })
    });
    let ready = match overlap {
        None => {
            condition("Ready", true, "PoolsValid", "prefixes can be given", generation, now.clone())
        }
        Some(text) => condition("Ready", false, "PoolsOverlap", text, generation, now.clone()),
    };
    set_condition(&mut status.conditions, ready);
    status
}

/// One round for one link.
///
/// # Errors
/// If the status cannot be written.
pub async fn reconcile(ctx: &Context, name: &str) -> anyhow::Result<()> {
    let links = ctx.links.state();
    let Some(link) = links.iter().find(|l| l.name_any() == name) else { return Ok(()) };
    let pools = effective_pools(link, &ctx.cluster);
    let others: Vec<_> = links
        .iter()
        .filter(|l| l.name_any() != name)
        .map(|l| (l.name_any(), effective_pools(l, &ctx.cluster)))
        .collect();
    let mappings = ctx.mappings.state_filter(|m| m.spec.link_ref.name == name);
    let mappings: Vec<&AcpMapping> = mappings.iter().map(AsRef::as_ref).collect();
    let status = status(link, &pools, &others, &mappings, &ctx.now());
    if link.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let api: Api<AeroLink> = Api::all(ctx.client.clone());
    apply_status(&api, name, MANAGER, &status).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use aero_crds::{AeroLinkSpec, is_true};

    fn pool(prefix: &str) -> EffectivePool {
        EffectivePool { prefix: prefix.parse().unwrap(), length: 64 }
    }

    #[test]
    fn pools_that_overlap_those_of_another_link_are_named() {
        let link = AeroLink::new("a", AeroLinkSpec::default());
        let others = vec![("b".to_string(), vec![pool("2001:db8::/40")])];
        let at = Time("2026-01-01T00:00:00Z".parse().unwrap());
        let s = status(&link, &[pool("2001:db8:1::/48")], &others, &[], &at);
        assert!(!is_true(&s.conditions, "Ready"));
        assert_eq!(
            s.conditions[0].message,
            "pool 2001:db8:1::/48 overlaps 2001:db8::/40 of link \"b\""
        );
        let s = status(&link, &[pool("2001:db9:1::/48")], &others, &[], &at);
        assert!(is_true(&s.conditions, "Ready"));
        assert_eq!(s.pools[0].free, 65536);
    }
}
