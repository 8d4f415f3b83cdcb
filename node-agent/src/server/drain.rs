//! A Server that is told to end sends its clients to other Servers before it goes.

use std::time::Duration;

use aero_protocol::server::{Remaining, Server};
use tokio::time::Instant;

use crate::driver::Driver;

/// Longest wait for the clients to leave. A Reconfigure that was lost is repeated after two and four
/// seconds; the pod of a Server has fifteen to end.
const LONGEST: Duration = Duration::from_secs(10);
/// How long it goes on for clients that no Reconfigure can send away: those that have no other
/// Server, or none that they know of yet, and those that take no Reconfigures.
const LINGER: Duration = Duration::from_secs(3);
/// How often it is looked who is left.
const LOOK: Duration = Duration::from_millis(20);
/// When all have left, what is still on its way to this Server is sent on for so long.
const SETTLE: Duration = Duration::from_millis(500);

/// Sends the clients away, and returns when nobody needs this Server any more, or after [`LONGEST`].
/// It forwards meanwhile.
pub(super) async fn drain(driver: &Driver<Server>) {
    let began = Instant::now();
    let had = driver.with(|server, now| {
        server.drain(now);
        server.remaining().clients
    });
    let left = loop {
        let left = driver.ask(|server| server.remaining());
        if is_over(left, began.elapsed()) {
            break left.clients;
        }
        tokio::time::sleep(LOOK).await;
    };
    let took = began.elapsed();
    tracing::info!(clients = had, left, ?took, "drained: the clients were sent to other Servers");
    if had > left {
        tokio::time::sleep(SETTLE).await;
    }
}

fn is_over(left: Remaining, waited: Duration) -> bool {
    left.clients == 0 || waited >= LONGEST || (left.asked == 0 && waited >= LINGER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_waits_for_those_that_may_still_leave_and_less_for_those_that_cannot() {
        let over = |clients, asked, seconds| {
            is_over(Remaining { clients, asked }, Duration::from_secs(seconds))
        };
        assert!(over(0, 0, 0), "nobody is left");
        assert!(!over(2, 1, 9), "one has not answered yet");
        assert!(over(2, 1, 10));
        assert!(!over(1, 0, 2), "it may have answered that it stays");
        assert!(over(1, 0, 3));
    }
}
