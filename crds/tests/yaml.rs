//! The generated files are what the code says.
#![allow(clippy::unwrap_used)]

#[test]
fn the_checked_in_yaml_is_what_crdgen_writes() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, yaml) in aero_crds::definitions().unwrap() {
        for dir in ["yaml", "../charts/aero/crds"] {
            let on_disk = std::fs::read_to_string(root.join(dir).join(&name)).unwrap_or_default();
            assert!(on_disk == yaml, "{dir}/{name} has drifted: run `make crds` and commit it");
        }
    }
}
