//! What is said: lines that are `ok`, `FAIL` or a remark, and what to do.

use std::fmt;

use serde::Serialize;

/// How a line stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Not as it should be.
    Fail,
    /// Neither: something to know.
    Note,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// How it stands.
    pub state: State,
    /// What it is about.
    pub part: String,
    /// What was seen.
    pub text: String,
}

/// A heading, lines, and what to do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What it is about.
    pub title: String,
    /// The lines, in order.
    pub lines: Vec<Line>,
    /// What to do, most pressing first.
    #[serde(rename = "do")]
    pub advice: Vec<String>,
}

impl Report {
    /// A report without lines.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), ..Self::default() }
    }

    /// Something is as it should be.
    pub fn ok(&mut self, part: impl Into<String>, text: impl Into<String>) {
        self.line(State::Ok, part, text);
    }

    /// Something to know.
    pub fn note(&mut self, part: impl Into<String>, text: impl Into<String>) {
        self.line(State::Note, part, text);
    }

    /// Something is not as it should be, and what to do about it.
    pub fn fail(
        &mut self,
        part: impl Into<String>,
        text: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.line(State::Fail, part, text);
        let advice = advice.into();
        if !advice.is_empty() && !self.advice.contains(&advice) {
            self.advice.push(advice);
        }
    }

    /// Turns a remark about a part into a fault, and says what to do.
    pub fn blame(&mut self, part: &str, advice: impl Into<String>) {
        if let Some(line) = self.lines.iter_mut().find(|l| l.part == part) {
            line.state = State::Fail;
        }
        self.advice.push(advice.into());
    }

    fn line(&mut self, state: State, part: impl Into<String>, text: impl Into<String>) {
        self.lines.push(Line { state, part: part.into(), text: text.into() });
    }

    /// True if nothing fails.
    pub fn healthy(&self) -> bool {
        self.lines.iter().all(|l| l.state != State::Fail)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.title.is_empty() {
            writeln!(f, "{}", self.title)?;
        }
        let width = self.lines.iter().map(|l| l.part.chars().count()).max().unwrap_or(0);
        for line in &self.lines {
            let state = match line.state {
                State::Ok => "ok",
                State::Fail => "FAIL",
                State::Note => "-",
            };
            let text = line.text.replace('\n', &format!("\n{:1$}", "", width + 10));
            writeln!(f, "  {state:<4}  {:<width$}  {text}", line.part)?;
        }
        for advice in &self.advice {
            writeln!(f, "  do    {advice}")?;
        }
        Ok(())
    }
}

/// Columns, as wide as what is in them; the last is not padded.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |n: usize| {
        rows.iter().filter_map(|r| r.get(n)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// `1 pod`, `2 pods`.
pub fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// A time in milliseconds: `0.41 ms`, `38 ms`, `2.1 s`.
pub fn millis(ms: f64) -> String {
    if ms < 10.0 {
        format!("{ms:.2} ms")
    } else if ms < 10_000.0 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.1} s", ms / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_lines_up_and_says_what_to_do_once() {
        let mut report = Report::new("title");
        report.ok("mapping", "Bound");
        report.fail("a long part", "gone\nsince long", "look");
        report.fail("other", "gone", "look");
        report.note("x", "y");
        assert!(!report.healthy());
        let text = "title\n  ok    mapping      Bound\n  FAIL  a long part  gone\n                     \
                    since long\n  FAIL  other        gone\n  -     x            y\n  do    look\n";
        assert_eq!(report.to_string(), text);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["A".into(), "B".into()], vec!["long".into(), String::new()]];
        assert_eq!(table(&rows), "A     B\nlong\n");
        assert_eq!(millis(0.412), "0.41 ms");
        assert_eq!(millis(212.4), "212 ms");
        assert_eq!(millis(12_300.0), "12.3 s");
        assert_eq!(count(1, "pod") + &count(2, " node"), "1 pod2  nodes");
    }
}
