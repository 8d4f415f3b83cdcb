//! Figures of tests, in files of `target/results` that several tests fill together.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::records;

/// Merges figures into `target/results/NAME` of the target folder that the running test binary lies
/// in: objects by key, at any depth; anything else takes the place of what was there. A program that
/// is no test binary writes nothing.
///
/// ```
/// # use serde_json::json;
/// aero_elements::results::merge("control-plane.json", &json!({"burst": {"lab": {"pods": 30}}}))
///     .unwrap();
/// ```
///
/// # Errors
/// If the file cannot be read or written.
pub fn merge(name: &str, figures: &Value) -> Result<()> {
    let Some(elements) = records::folder_of_this_binary() else { return Ok(()) };
    let folder = elements.parent().context("target/results")?;
    merge_into_file(&folder.join(name), figures)
}

/// Several tests may do so at once, in threads and in processes: each waits for the file's lock.
fn merge_into_file(path: &Path, figures: &Value) -> Result<()> {
    let run = || -> Result<()> {
        fs::create_dir_all(path.parent().context("it has no folder")?)?;
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = open?;
        file.lock()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // Of a run that was cut short.
        let mut all = serde_json::from_str(&text).unwrap_or_else(|_| json!({}));
        merge_values(&mut all, figures);
        file.rewind()?;
        file.set_len(0)?;
        file.write_all(format!("{all:#}\n").as_bytes())?;
        Ok(())
    };
    run().with_context(|| path.display().to_string())
}

fn merge_values(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge_values(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_several_tests_come_together_and_new_ones_replace_old_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results/f.json");
        merge_into_file(&path, &json!({"burst": {"model": {"pods": 1}}, "list": [1, 2]})).unwrap();
        std::thread::scope(|scope| {
            for n in 0..20 {
                let path = &path;
                let figures = json!({"burst": {"lab": {n.to_string(): n}}, "list": [3]});
                scope.spawn(move || merge_into_file(path, &figures).unwrap());
            }
        });
        let all: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!((&all["burst"]["model"]["pods"], &all["list"]), (&json!(1), &json!([3])));
        assert_eq!(all["burst"]["lab"].as_object().unwrap().len(), 20);
        fs::write(&path, "{\"half").unwrap();
        merge_into_file(&path, &json!({"a": 1})).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\n  \"a\": 1\n}\n");
    }
}
