//! Writes the CRDs as YAML files into `crds/yaml`, or into the folder given as argument.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os()
        .nth(1)
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/yaml")), PathBuf::from);
    std::fs::create_dir_all(&folder)?;
    for crd in aero_crds::yaml::all() {
        let path = folder.join(aero_crds::yaml::file_name(&crd));
        std::fs::write(&path, aero_crds::yaml::render(&crd)?)?;
        println!("{}", path.display());
    }
    Ok(())
}
