//! Steps with their elapsed time.

use std::io::Write;
use std::time::Instant;

/// Prints steps as they are done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// Prints nothing; for tests.
    pub quiet: bool,
}

impl Progress {
    /// Does a step: prints what it is, then how long it took.
    ///
    /// # Errors
    /// What the step says.
    pub fn step<T>(
        &self,
        part: &str,
        what: &str,
        work: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let began = Instant::now();
        if !self.quiet {
            print!("  {part:<10} {what:<64} ");
            let _ = std::io::stdout().flush();
        }
        let outcome = work();
        if !self.quiet {
            match &outcome {
                Ok(_) => println!("{:>7.1} s", began.elapsed().as_secs_f64()),
                Err(_) => println!(" failed after {:.1} s", began.elapsed().as_secs_f64()),
            }
        }
        outcome
    }

    /// A line of text.
    pub fn line(&self, text: &str) {
        if !self.quiet {
            println!("{text}");
        }
    }
}
