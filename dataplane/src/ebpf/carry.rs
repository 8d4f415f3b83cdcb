//! Takes over what a forwarder with another layout of the maps has left.
//!
//! From `v1` to `v2` keys and values kept their sizes, and what was padding means "nothing known"
//! while it is zero: entries are carried over as they are. A map whose entries have another size
//! is left behind, and says so; a layout that changes one brings its reader here.

use std::borrow::BorrowMut;
use std::path::{Path, PathBuf};

use aya::Pod;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{HashMap, Map, MapData, MapError};

use super::maps::Maps;
use super::{LAYOUT, Options};

/// Directory of this forwarder's pins in another layout, if there is one.
fn other_layout(options: &Options) -> Option<PathBuf> {
    let entries = std::fs::read_dir(&options.root).into_iter().flatten().flatten();
    let others = entries.filter(|e| e.file_name() != LAYOUT);
    others.map(|e| e.path().join(&options.name)).find(|p| p.join("config").exists())
}

/// Fills maps that are new with what is pinned in another layout.
pub(super) fn carry(options: &Options, maps: &mut Maps) {
    let Some(old) = other_layout(options) else { return };
    let carried = [
        tries(&old, "routes", &mut maps.routes),
        tries(&old, "sources", &mut maps.sources),
        hashes(&old, "peers", &mut maps.peers),
        tries(&old, "handovers", &mut maps.handovers),
        tries(&old, "direct", &mut maps.direct),
        hashes(&old, "pods", &mut maps.pods),
        hashes(&old, "flows", &mut maps.flows),
    ];
    let entries: usize = carried.into_iter().flatten().sum();
    tracing::info!(from = %old.display(), entries, "took over the table of an earlier version");
}

fn report(name: &str, outcome: Result<usize, MapError>) -> Option<usize> {
    if let Err(why) = &outcome {
        tracing::warn!(map = name, "not taken over from an earlier version: {why}");
    }
    outcome.ok()
}

fn tries<K: Pod, V: Pod>(
    old: &Path,
    name: &str,
    to: &mut LpmTrie<impl BorrowMut<MapData>, K, V>,
) -> Option<usize> {
    let mut copy = || {
        let from = LpmTrie::<_, K, V>::try_from(Map::LpmTrie(MapData::from_pin(old.join(name))?))?;
        let mut entries = 0;
        for (key, value) in from.iter().flatten() {
            to.insert(&key, value, 0)?;
            entries += 1;
        }
        Ok(entries)
    };
    report(name, copy())
}

fn hashes<K: Pod, V: Pod>(
    old: &Path,
    name: &str,
    to: &mut HashMap<impl BorrowMut<MapData>, K, V>,
) -> Option<usize> {
    let mut copy = || {
        let from = Map::from_map_data(MapData::from_pin(old.join(name))?)?;
        let from = HashMap::<_, K, V>::try_from(from)?;
        let mut entries = 0;
        for (key, value) in from.iter().flatten() {
            to.insert(key, value, 0)?;
            entries += 1;
        }
        Ok(entries)
    };
    report(name, copy())
}
