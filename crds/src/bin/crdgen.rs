//! Writes the CRDs to `crds/yaml` and into the chart.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, yaml) in aero_crds::definitions()? {
        for dir in ["yaml", "../charts/aero/crds"] {
            std::fs::write(root.join(dir).join(&name), &yaml)?;
        }
        println!("wrote crds/yaml/{name} and charts/aero/crds/{name}");
    }
    Ok(())
}
