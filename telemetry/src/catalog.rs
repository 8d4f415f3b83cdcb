//! The catalogue of metrics in the documentation, made from a registry, so that a test can hold
//! the one to the other.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

#[derive(Default)]
struct Metric {
    kind: String,
    help: String,
    labels: Vec<String>,
}

/// Every metric of a registry as a Markdown table: name as it is scraped, type, labels, meaning.
///
/// # Errors
/// If the registry cannot be encoded.
pub fn table(registry: &Registry) -> Result<String, std::fmt::Error> {
    let mut exposed = String::new();
    text::encode(&mut exposed, registry)?;
    let mut metrics = BTreeMap::<String, Metric>::new();
    for line in exposed.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
            metrics.entry(name.into()).or_default().help = help.trim_end_matches('.').into();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, ""));
            metrics.entry(name.into()).or_default().kind = kind.into();
        } else if let Some((name, rest)) = line.split_once('{') {
            let suffixes = ["_total", "_bucket", "_info", "_count", "_sum"];
            let base = suffixes.iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name);
            let metric = metrics.entry(base.into()).or_default();
            for label in rest.split("\",").filter_map(|l| l.split_once('=')).map(|(l, _)| l) {
                if label != "le" && !metric.labels.iter().any(|known| known == label) {
                    metric.labels.push(label.into());
                }
            }
        }
    }
    let mut out = String::from("| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n");
    for (name, m) in metrics {
        let suffix = match m.kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let labels: Vec<String> = m.labels.iter().map(|l| format!("`{l}`")).collect();
        let labels = labels.join(", ");
        writeln!(out, "| `{name}{suffix}` | {} | {labels} | {} |", m.kind, m.help)?;
    }
    Ok(out)
}

/// Holds the part of a document between `<!-- section -->` and `<!-- end -->` to a registry.
/// With `UPDATE_DOCS` set in the environment, writes it instead.
///
/// # Errors
/// Says how to bring the document up to date.
pub fn hold(document: &Path, section: &str, registry: &Registry) -> Result<(), String> {
    let table = table(registry).map_err(|e| e.to_string())?;
    let path = document.display();
    let text = std::fs::read_to_string(document).map_err(|e| format!("{path}: {e}"))?;
    let (begin, end) = (format!("<!-- {section} -->\n"), "<!-- end -->");
    let parts = text.split_once(&begin).and_then(|(head, rest)| {
        let (present, tail) = rest.split_once(end)?;
        Some((head, present, tail))
    });
    let Some((head, present, tail)) = parts else {
        return Err(format!("{path} has no part {begin:?}"));
    };
    if present == table {
        return Ok(());
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        return std::fs::write(document, format!("{head}{begin}{table}{end}{tail}"))
            .map_err(|e| format!("{path}: {e}"));
    }
    Err(format!(
        "{path}, part {section:?}, is not what the program registers; UPDATE_DOCS=1 cargo test \
         writes it. It should be:\n{table}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family;
    use prometheus_client::metrics::gauge::Gauge;

    fn registry() -> Registry {
        let mut registry = Registry::default();
        let family = Family::<Vec<(String, String)>, Counter>::default();
        let labels = vec![("verb".into(), "ADD".into()), ("result".into(), "ok".into())];
        family.get_or_create(&labels).inc();
        registry.register("a_requests", "Requests", family);
        registry.register("b", "A number", Gauge::<i64>::default());
        registry
    }

    #[test]
    fn a_metric_is_listed_under_the_name_that_is_scraped_with_its_labels() {
        let table = table(&registry()).unwrap();
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| `a_requests_total` | counter | `verb`, `result` | Requests |",
                "| `b` | gauge |  | A number |",
            ]
        );
    }

    #[test]
    fn a_document_that_differs_from_the_registry_is_an_error_that_shows_the_table() {
        let dir = std::env::temp_dir().join(format!("aero-catalog-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let document = dir.join("m.md");
        std::fs::write(&document, "x\n<!-- p -->\nold\n<!-- end -->\n").unwrap();
        let said = hold(&document, "p", &registry()).unwrap_err();
        assert!(said.contains("| `b` | gauge |"), "{said}");
        let good = format!("x\n<!-- p -->\n{}<!-- end -->\n", table(&registry()).unwrap());
        std::fs::write(&document, good).unwrap();
        hold(&document, "p", &registry()).unwrap();
        assert!(hold(&document, "q", &registry()).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
