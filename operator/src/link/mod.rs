//! AeroLink: the pools in effect and how full they are.

use aero_crds::{AeroLink, AeroLinkStatus, PoolStatus, condition, set_condition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Api, ResourceExt};

use crate::allocation::{EffectivePool, effective_pools};
use crate::context::{Context, apply_status};
use crate::table::Count;

/// Field manager of what this controller applies.
const MANAGER: &str = "aero-operator-link";

/// The status of a link: a pure function of what is observed. `counts`: of each of `pools`.
pub fn status(
    link: &AeroLink,
    pools: &[EffectivePool],
    others: &[(String, Vec<EffectivePool>)],
    counts: &[Count],
    now: &Time,
) -> AeroLinkStatus {
    let generation = link.metadata.generation;
    let mut status = link.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    status.pools = pools
        .iter()
        .zip(counts)
        .map(|(pool, count)| {
            let (in_use, cooling) = (count.used, count.cooling);
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
    let counts = ctx.table().count(name, &pools);
    let status = status(link, &pools, &others, &counts, &ctx.now());
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
        let s = status(&link, &[pool("2001:db8:1::/48")], &others, &[Count::default()], &at);
        assert!(!is_true(&s.conditions, "Ready"));
        assert_eq!(
            s.conditions[0].message,
            "pool 2001:db8:1::/48 overlaps 2001:db8::/40 of link \"b\""
        );
        let s = status(&link, &[pool("2001:db9:1::/48")], &others, &[Count::default()], &at);
        assert!(is_true(&s.conditions, "Ready"));
        assert_eq!(s.pools[0].free, 65536);
    }
}
