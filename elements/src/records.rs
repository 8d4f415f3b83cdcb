//! Claims of tests that ran, one small file each.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// A claim that a running test made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The test's path in its binary.
    pub test: String,
    /// File name of the binary, hash included.
    pub binary: String,
    /// Where the claim stands.
    pub file: String,
    /// The line of it.
    pub line: u32,
    /// Ids of the rows.
    pub rows: Vec<String>,
    /// The commit at which the log of a run said that this test passed.
    pub accepted: Option<String>,
    /// What was measured; of fault cases only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub figure: Option<String>,
    /// U, N or K; of fault cases only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
}

impl Record {
    fn name(&self) -> String {
        let plain: String = self
            .test
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' })
            .collect();
        format!("{}.{plain}.{}.json", self.binary, self.line)
    }

    /// Writes it into `folder`.
    ///
    /// # Errors
    /// If that fails.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        let text = serde_json::to_string_pretty(self)?;
        // Another thread may write its own record at the same time, never this one.
        fs::write(folder.join(self.name()), text + "\n").context("write")
    }
}

/// Reads all records of `folder` with their paths.
///
/// # Errors
/// If a file there cannot be read as a record.
pub fn read(folder: &Path) -> Result<Vec<(PathBuf, Record)>> {
    let mut all = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return Ok(all) };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "json") {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let record = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
            all.push((path, record));
        }
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(all)
}

/// The file name of the running program.
pub fn binary() -> String {
    let exe = std::env::current_exe().unwrap_or_default();
    exe.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// `target/results/elements` of the target folder that the running test binary lies in; `None` if
/// the program is not a test binary.
pub fn folder_of_this_binary() -> Option<PathBuf> {
    let exe = std::env::current_exe().ok()?;
    let deps = exe.ancestors().find(|p| p.file_name().is_some_and(|n| n == "deps"))?;
    Some(deps.parent()?.parent()?.join("results/elements"))
}
