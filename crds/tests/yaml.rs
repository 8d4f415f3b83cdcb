//! The checked-in YAML is what the types say.

#[test]
fn the_checked_in_yaml_is_generated_from_the_types() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("yaml");
    for crd in aero_crds::yaml::all() {
        let name = aero_crds::yaml::file_name(&crd);
        let found = std::fs::read_to_string(folder.join(&name)).unwrap_or_default();
        let expected = aero_crds::yaml::render(&crd).unwrap();
        assert!(
            found == expected,
            "crds/yaml/{name} is not what the types say: run cargo run -p aero-crds --bin crdgen"
        );
    }
}

#[test]
fn no_field_has_a_format_that_the_api_server_warns_about() {
    for crd in aero_crds::yaml::all() {
        let text = aero_crds::yaml::render(&crd).unwrap();
        assert!(!text.contains("format: uint"), "{}", crd.spec.names.plural);
    }
}
