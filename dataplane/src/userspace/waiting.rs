//! Packets that wait while a Client is between two Proxies: kept when the table says so, looked up
//! again, in order and before anything newer, when the route has changed.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use aero_protocol::address::LinkLayerAddress;
use aero_protocol::forwarding::{Change, Drop};
use aero_protocol::tunnel::header::Outer;
use ipnet::IpNet;

use super::batch::Out;
use super::{Forwarder, State};
use crate::tun::Outgoing;

/// A packet with what it takes to look it up again.
#[derive(Debug)]
pub(super) struct Waiting {
    /// The outer source; `None` if it came from this node's network layer.
    from: Option<LinkLayerAddress>,
    packet: Vec<u8>,
    outer: Outer,
}

/// What need not wait any more and has not been looked up again.
#[derive(Debug, Default)]
pub(super) struct Released {
    some: AtomicBool,
    queue: std::sync::Mutex<Vec<Waiting>>,
    /// One at a time, or packets would overtake each other here.
    one: tokio::sync::Mutex<()>,
    notify: tokio::sync::Notify,
}

impl Released {
    /// Applies a change, and takes over what it lets go. To be called with the state locked.
    pub(super) fn apply(&self, state: &mut State, change: &Change) {
        state.table.apply(change);
        let all = state.held.release(change);
        if !all.is_empty() {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.extend(all);
            self.some.store(true, Ordering::Release);
            self.notify.notify_one();
        }
    }

    /// All of it. Whoever finds nothing may go on without a look.
    fn take(&self) -> Vec<Waiting> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.is_empty() {
            self.some.store(false, Ordering::Release);
        }
        std::mem::take(&mut *queue)
    }
}

impl Forwarder {
    /// Keeps a packet.
    pub(super) fn wait(
        &self,
        (prefix, first): (IpNet, bool),
        from: Option<LinkLayerAddress>,
        packet: &[u8],
        outer: Outer,
    ) {
        let waiting = Waiting { from, packet: packet.to_vec(), outer };
        if self.change(|state| state.held.push(prefix, first, waiting)).is_some() {
            self.counters.dropped(Drop::NoRoute);
        }
    }

    /// Sends on its way what need not wait any more; anything newer comes after it.
    pub(super) async fn go_on(&self) {
        if !self.released.some.load(Ordering::Acquire) {
            return;
        }
        let _one = self.released.one.lock().await;
        loop {
            let mut all = self.released.take();
            if all.is_empty() {
                return;
            }
            let mut out = Out::new(Outgoing::default(), 0);
            for waiting in &mut all {
                match waiting.from {
                    Some(from) => {
                        self.pass(from, &mut waiting.packet, waiting.outer, &mut out).await;
                    }
                    None => self.leave(&waiting.packet, &mut out).await,
                }
            }
            drop(self.flush(out).await);
        }
    }

    /// Does so also when nothing newer comes, for ever.
    pub(super) async fn serve_released(&self) -> std::io::Result<()> {
        loop {
            self.released.notify.notified().await;
            self.go_on().await;
        }
    }
}
