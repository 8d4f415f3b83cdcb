//! Programs at interfaces: links that are pinned where the kernel has tcx (6.6 and later), filters
//! of a `clsact` queueing discipline where not. Both stay when the process ends, and the next one
//! puts its programs in the place of the old ones without a gap.

use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{SchedClassifier, TcAttachType, tc};

/// How programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hooks {
    /// tcx where the kernel has it.
    #[default]
    Auto,
    /// tcx or nothing.
    Tcx,
    /// The older way.
    Clsact,
}

/// The attached programs of one forwarder.
#[derive(Debug)]
pub(super) struct Attached {
    directory: PathBuf,
    hooks: Hooks,
    /// Priority of our filters: our port, so that no two forwarders of a node have the same.
    priority: u16,
}

/// The one filter that we have at our priority.
const HANDLE: TcHandle = TcHandle::new(0, 1);

fn direction(attach_type: TcAttachType) -> &'static str {
    if attach_type == TcAttachType::Egress { "egress" } else { "ingress" }
}

impl Attached {
    pub fn new(directory: &Path, hooks: Hooks, priority: u16) -> io::Result<Self> {
        let directory = directory.join("links");
        std::fs::create_dir_all(&directory)?;
        Ok(Self { directory, hooks, priority })
    }

    fn pin(&self, device: &str, attach_type: TcAttachType) -> PathBuf {
        self.directory.join(format!("{device}-{}", direction(attach_type)))
    }

    /// Attaches a program, in the place of the one that is there.
    pub fn attach(
        &mut self,
        program: &mut SchedClassifier,
        device: &str,
        attach_type: TcAttachType,
    ) -> Result<(), String> {
        let outcome = match self.hooks {
            Hooks::Clsact => self.clsact(program, device, attach_type),
            Hooks::Tcx => self.tcx(program, device, attach_type),
            Hooks::Auto => self.tcx(program, device, attach_type).or_else(|tcx| {
                let outcome = self.clsact(program, device, attach_type);
                outcome.map_err(|clsact| format!("tcx: {tcx}; clsact: {clsact}"))
            }),
        };
        outcome.map_err(|e| format!("{} of {device}: {e}", direction(attach_type)))
    }

    fn tcx(
        &self,
        program: &mut SchedClassifier,
        device: &str,
        attach_type: TcAttachType,
    ) -> Result<(), String> {
        let path = self.pin(device, attach_type);
        if let Ok(old) = PinnedLink::from_pin(&path) {
            let replaced = SchedClassifierLink::try_from(FdLink::from(old))
                .map_err(|e| e.to_string())
                .and_then(|link| program.attach_to_link(link).map_err(|e| cause(&e)))
                .and_then(|id| program.take_link(id).map_err(|e| cause(&e)));
            match replaced {
                // Dropped, it stays by its pin.
                Ok(link) => return FdLink::try_from(link).map(drop).map_err(|e| e.to_string()),
                // Its device is gone; there is another of that name.
                Err(_) => std::fs::remove_file(&path).map_err(|e| e.to_string())?,
            }
        }
        let order = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = program.attach_with_options(device, attach_type, order).map_err(|e| cause(&e))?;
        let link = program.take_link(id).map_err(|e| cause(&e))?;
        let link = FdLink::try_from(link).map_err(|e| e.to_string())?;
        link.pin(&path).map(drop).map_err(|e| cause(&e))
    }

    fn clsact(
        &self,
        program: &mut SchedClassifier,
        device: &str,
        attach_type: TcAttachType,
    ) -> Result<(), String> {
        // That it is there already is as good.
        let _ = tc::qdisc_add_clsact(device);
        let id = match self.filter(device, attach_type) {
            Ok(old) => program.attach_to_link(old),
            Err(e) => return Err(e.to_string()),
        };
        let options = NlOptions { priority: self.priority, handle: HANDLE, classid: None };
        let id = id.or_else(|_| {
            program.attach_with_options(device, attach_type, TcAttachOptions::Netlink(options))
        });
        let id = id.map_err(|e| cause(&e))?;
        let link = program.take_link(id).map_err(|e| cause(&e))?;
        // Dropping it would take the filter away.
        std::mem::forget(link);
        let marker = self.pin(device, attach_type);
        let _ = std::fs::remove_file(marker);
        Ok(())
    }

    fn filter(&self, device: &str, attach_type: TcAttachType) -> io::Result<SchedClassifierLink> {
        SchedClassifierLink::attached(device, attach_type, self.priority, HANDLE, None)
    }

    /// Takes a program off a device. That it is gone already is as good.
    pub fn detach(&self, device: &str, attach_type: TcAttachType) {
        let _ = std::fs::remove_file(self.pin(device, attach_type));
        if self.hooks != Hooks::Tcx
            && let Ok(link) = self.filter(device, attach_type)
        {
            let _ = aya::programs::links::Link::detach(link);
        }
    }

    /// Devices with a pinned program, and its direction.
    pub fn pinned(&self) -> Vec<(String, TcAttachType)> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let name = |e: std::fs::DirEntry| e.file_name().into_string().ok();
        entries
            .filter_map(name)
            .filter_map(|n| {
                let (device, way) = n.rsplit_once('-')?;
                let way =
                    if way == "egress" { TcAttachType::Egress } else { TcAttachType::Ingress };
                Some((device.to_string(), way))
            })
            .collect()
    }
}

/// An error with what is behind it.
pub(super) fn cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(e) = next {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = e.source();
    }
    text
}
