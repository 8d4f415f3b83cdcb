//! Writes the CRDs to `crds/yaml` and into the chart.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, yaml) in aero_crds::definitions()? {
        let path = root.join("yaml").join(&name);
        std::fs::write(&path, yaml)?;
        println!("wrote crds/yaml/{name}");
    }
    Ok(())
}
