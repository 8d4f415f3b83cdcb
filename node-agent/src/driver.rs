//! Drives a protocol engine: gives it packets and time, and does what it wants done.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use aero_dataplane::ForwardingTable;
use aero_dataplane::userspace::{Control, Forwarder};
use aero_protocol::Output;
use aero_protocol::address::LinkLayerAddress;
use tokio::sync::{Notify, mpsc, watch};

use crate::messages::{Direction, Messages};

/// What is known about the paths of the underlay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum PathMtu {
    /// Nodes' MTUs agree, as in a cluster: what fits the underlay interface gets through. A Packet
    /// Too Big is believed all the same.
    #[default]
    Assured,
    /// Nothing: what does not fit 1280 bytes outside goes in fragments until a probe has come
    /// through.
    Probe,
}

impl PathMtu {
    /// For a forwarder on an underlay interface of this MTU.
    pub fn config(self, underlay_mtu: u16) -> aero_protocol::tunnel::path::Config {
        aero_protocol::tunnel::path::Config { underlay_mtu, assured: self == PathMtu::Assured }
    }
}

/// An engine of the protocol crate.
pub trait Engine: Send + 'static {
    /// What it reports.
    type Event: Send;
    /// A control packet.
    fn handle_packet(&mut self, from: LinkLayerAddress, packet: &[u8], now: Instant);
    /// Time has passed.
    fn handle_timeout(&mut self, now: Instant);
    /// When time matters next.
    fn poll_timeout(&self) -> Option<Instant>;
    /// What to do.
    fn poll_output(&mut self) -> Option<Output<Self::Event>>;
}

macro_rules! engine {
    ($engine:ty, $event:ty) => {
        impl Engine for $engine {
            type Event = $event;
            fn handle_packet(&mut self, from: LinkLayerAddress, packet: &[u8], now: Instant) {
                Self::handle_packet(self, from, packet, now);
            }
            fn handle_timeout(&mut self, now: Instant) {
                Self::handle_timeout(self, now);
            }
            fn poll_timeout(&self) -> Option<Instant> {
                Self::poll_timeout(self)
            }
            fn poll_output(&mut self) -> Option<Output<Self::Event>> {
                Self::poll_output(self)
            }
        }
    };
}

engine!(aero_protocol::client::Node, aero_protocol::client::Event);
engine!(aero_protocol::server::Server, aero_protocol::server::Event);
engine!(aero_protocol::relay::Relay, aero_protocol::relay::Event);
engine!(aero_protocol::relay_agent::RelayAgent, aero_protocol::relay_agent::Event);
engine!(aero_protocol::forwarding_agent::ForwardingAgent, aero_protocol::forwarding_agent::Event);

/// An engine with its surroundings.
pub struct Driver<E: Engine> {
    engine: Mutex<E>,
    table: Arc<dyn ForwardingTable>,
    sender: mpsc::UnboundedSender<(LinkLayerAddress, Vec<u8>)>,
    on_event: Box<dyn Fn(E::Event) + Send + Sync>,
    wake: Notify,
    changed: watch::Sender<u64>,
    turns: watch::Sender<()>,
    messages: Arc<Messages>,
}

impl<E: Engine> Driver<E> {
    /// Puts an engine into its surroundings. The returned receiver is for [`Driver::run`].
    pub fn new(
        engine: E,
        table: Arc<dyn ForwardingTable>,
        on_event: impl Fn(E::Event) + Send + Sync + 'static,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<(LinkLayerAddress, Vec<u8>)>) {
        let (sender, outgoing) = mpsc::unbounded_channel();
        let driver = Self {
            engine: Mutex::new(engine),
            table,
            sender,
            on_event: Box::new(on_event),
            wake: Notify::new(),
            changed: watch::channel(0).0,
            turns: watch::channel(()).0,
            messages: Arc::default(),
        };
        (Arc::new(driver), outgoing)
    }

    /// Lets `f` work with the engine, then does what the engine wants done.
    pub fn with<R>(&self, f: impl FnOnce(&mut E, Instant) -> R) -> R {
        let mut events = Vec::new();
        let result = {
            let mut engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
            let result = f(&mut engine, Instant::now());
            while let Some(output) = engine.poll_output() {
                match output {
                    Output::Send { to, packet } | Output::SendOn { to, packet, .. } => {
                        self.messages.count(Direction::Out, &packet);
                        // Ends only with the process.
                        drop(self.sender.send((to, packet)));
                    }
                    Output::Forward(change) => self.table.apply(&change),
                    Output::Event(event) => events.push(event),
                }
            }
            result
        };
        self.wake.notify_one();
        self.turns.send_replace(());
        if !events.is_empty() {
            self.changed.send_modify(|n| *n = n.wrapping_add(1));
        }
        for event in events {
            (self.on_event)(event);
        }
        result
    }

    /// Lets `f` ask the engine for what it has for others than this driver. Nobody is told.
    pub fn ask<R>(&self, f: impl FnOnce(&mut E) -> R) -> R {
        f(&mut self.engine.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many control messages went by.
    pub fn messages(&self) -> Arc<Messages> {
        Arc::clone(&self.messages)
    }

    /// Tells when the engine has reported something.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Tells when anybody has worked with the engine.
    pub fn turns(&self) -> watch::Receiver<()> {
        self.turns.subscribe()
    }

    /// Runs until the future is dropped.
    pub async fn run(
        &self,
        forwarder: &Forwarder,
        mut control: mpsc::Receiver<Control>,
        mut outgoing: mpsc::UnboundedReceiver<(LinkLayerAddress, Vec<u8>)>,
    ) {
        let send = async {
            while let Some((to, packet)) = outgoing.recv().await {
                // What the underlay does not take is as good as lost, and is sent again.
                if let Err(e) = forwarder.send_control(to, &packet).await {
                    tracing::debug!(%to, "a control packet could not be sent: {e}");
                }
            }
        };
        let receive = async {
            while let Some(Control { from, packet }) = control.recv().await {
                self.messages.count(Direction::In, &packet);
                self.with(|engine, now| engine.handle_packet(from, &packet, now));
            }
        };
        let time = async {
            loop {
                let next =
                    self.engine.lock().unwrap_or_else(PoisonError::into_inner).poll_timeout();
                let due = async {
                    match next {
                        Some(t) => tokio::time::sleep_until(t.into()).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = due => self.with(E::handle_timeout),
                    () = self.wake.notified() => {}
                }
            }
        };
        tokio::select! {
            () = send => {}
            () = receive => {}
            () = time => {}
        }
    }
}
