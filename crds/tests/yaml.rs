//! The generated files are what the code says.
#![allow(clippy::unwrap_used)]

#[test]
fn the_checked_in_yaml_is_what_crdgen_writes() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("yaml");
    for (name, yaml) in aero_crds::definitions().unwrap() {
        let on_disk = std::fs::read_to_string(dir.join(&name)).unwrap_or_default();
        assert!(on_disk == yaml, "{name} has drifted: run `make crds` and commit the result");
    }
}
