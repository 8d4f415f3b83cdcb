//! Steps that wait until a test lets them go, one at a time: requests when they arrive and when
//! they are answered, and events of watches. So the order of what happens is the test's.

use std::sync::Arc;

use tokio::sync::{Notify, oneshot};

/// One thing that happened: which identity it was about, and what.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Step {
    pub of: String,
    pub what: String,
}

/// Who waits, and who was let go.
#[derive(Default)]
pub struct Gates {
    waiting: Vec<(Step, oneshot::Sender<()>)>,
    /// What was let go, in its order.
    pub went: Vec<Step>,
    arrived: Arc<Notify>,
}

impl Gates {
    pub fn wait(&mut self, of: &str, what: String) -> oneshot::Receiver<()> {
        let (open, opened) = oneshot::channel();
        self.waiting.push((Step { of: of.into(), what }, open));
        self.arrived.notify_one();
        opened
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether such a step waits.
    pub fn any(&self, is: impl Fn(&Step) -> bool) -> bool {
        self.waiting.iter().any(|(s, _)| is(s))
    }

    /// Tells of every step that comes to wait.
    pub fn arrivals(&self) -> Arc<Notify> {
        Arc::clone(&self.arrived)
    }

    pub fn let_go(&mut self, n: usize) {
        let (step, open) = self.waiting.remove(n);
        self.went.push(step);
        let _ = open.send(());
    }
}
