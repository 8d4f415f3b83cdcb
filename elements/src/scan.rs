//! The claims that stand in the sources, found by reading them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// A claim in a source file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// Path below the root, with `/`.
    pub file: String,
    /// The function that it stands in.
    pub test: String,
    /// Ids of the rows.
    pub rows: Vec<String>,
}

/// All claims below `root`, in the order of files and lines.
///
/// # Errors
/// If a file cannot be read.
pub fn claims(root: &Path) -> Result<Vec<Claim>> {
    let mut files = Vec::new();
    walk(root, &mut files)?;
    files.sort();
    let mut all = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let file = path.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
        // This crate explains claims and makes none.
        if !file.starts_with("elements/") {
            all.extend(in_text(&file, &text));
        }
    }
    Ok(all)
}

fn walk(folder: &Path, files: &mut Vec<std::path::PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let hidden = name.to_string_lossy().starts_with('.');
        if entry.file_type()?.is_dir() {
            if !hidden && name != "target" {
                walk(&path, files)?;
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn in_text(file: &str, text: &str) -> Vec<Claim> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("aero_elements::covers") {
        let line = text.get(..at).unwrap_or_default().rsplit('\n').next().unwrap_or_default();
        if line.contains("//") {
            continue;
        }
        let Some(rest) = text.get(at..) else { continue };
        let Some((_, rest)) = rest.split_once("&[") else { continue };
        let Some((list, _)) = rest.split_once(']') else { continue };
        let rows = list.split('"').skip(1).step_by(2).map(ToString::to_string).collect();
        let before = text.get(..at).unwrap_or_default();
        let test = before
            .rsplit("fn ")
            .next()
            .map(|t| t.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
            .unwrap_or_default();
        found.push(Claim { file: file.to_string(), test, rows });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_found_with_the_function_that_they_stand_in() {
        let text = "#[test]\nfn one() {\n    let _row = aero_elements::covers(&[\"K1\", \"K2 neg\"]);\n}\n\
                    // aero_elements::covers(&[\"A1\"])\n#[test]\nfn two() {\n    let _row =\n        \
                    aero_elements::covers_in(\"t\", &[\n \"W7\",\n]);\n}\n";
        let claim = |test: &str, rows: &[&str]| Claim {
            file: "x.rs".into(),
            test: test.into(),
            rows: rows.iter().map(ToString::to_string).collect(),
        };
        let found = in_text("x.rs", text);
        assert_eq!(found, [claim("one", &["K1", "K2 neg"]), claim("two", &["W7"])]);
    }
}
