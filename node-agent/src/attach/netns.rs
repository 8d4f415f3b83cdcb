//! A netlink socket in a network namespace.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;

use futures::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::{Handle, LinkUnspec};
use tokio::task::JoinHandle;

/// Netlink in one namespace. Dropping it ends its task.
pub struct Netns {
    pub(crate) handle: Handle,
    task: JoinHandle<()>,
}

impl Drop for Netns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Netns {
    /// The namespace of this process.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn own() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    /// The namespace at a path. Only a thread of its own enters it; the socket that it makes
    /// there is driven from here.
    ///
    /// # Errors
    /// If there is no namespace at the path, or it cannot be entered.
    pub fn at(path: &Path) -> io::Result<Self> {
        let file = std::fs::File::open(path)?;
        let runtime = tokio::runtime::Handle::current();
        let made = std::thread::spawn(move || {
            let _context = runtime.enter();
            nix::sched::setns(file.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET)?;
            rtnetlink::new_connection()
        })
        .join();
        let (connection, handle, _) =
            made.map_err(|_| io::Error::other("the thread in the namespace panicked"))??;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    /// An interface by name, or `None`.
    ///
    /// # Errors
    /// As the kernel says.
    pub async fn link(&self, name: &str) -> Result<Option<LinkMessage>, rtnetlink::Error> {
        let mut found = self.handle.link().get().match_name(name.to_string()).execute();
        match found.try_next().await {
            Ok(link) => Ok(link),
            Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -nix::libc::ENODEV => {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Names and indices of all interfaces.
    ///
    /// # Errors
    /// As the kernel says.
    pub async fn links(&self) -> Result<Vec<(u32, String)>, rtnetlink::Error> {
        let all: Vec<LinkMessage> = self.handle.link().get().execute().try_collect().await?;
        Ok(all.iter().map(|l| (l.header.index, name_of(l))).collect())
    }

    /// Deletes an interface if it is there.
    ///
    /// # Errors
    /// As the kernel says.
    pub async fn delete_link(&self, name: &str) -> Result<(), rtnetlink::Error> {
        match self.link(name).await? {
            Some(link) => match self.handle.link().del(link.header.index).execute().await {
                Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -nix::libc::ENODEV => {
                    Ok(())
                }
                done => done,
            },
            None => Ok(()),
        }
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// As the kernel says.
    pub async fn up(&self, index: u32) -> Result<(), rtnetlink::Error> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().change(message).execute().await
    }

    /// All addresses, with the index of their interface.
    ///
    /// # Errors
    /// As the kernel says.
    pub async fn addresses(&self) -> Result<Vec<(u32, IpAddr)>, rtnetlink::Error> {
        use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
        let all: Vec<AddressMessage> = self.handle.address().get().execute().try_collect().await?;
        let address = |m: &AddressMessage| {
            m.attributes.iter().find_map(|a| match a {
                AddressAttribute::Address(ip) => Some((m.header.index, *ip)),
                _ => None,
            })
        };
        Ok(all.iter().filter_map(address).collect())
    }

    /// MTU of the interface that has an address.
    ///
    /// # Errors
    /// As the kernel says.
    pub async fn mtu_of(&self, address: IpAddr) -> Result<Option<u32>, rtnetlink::Error> {
        let all = self.addresses().await?;
        let Some((index, _)) = all.iter().find(|(_, ip)| *ip == address) else { return Ok(None) };
        let links: Vec<LinkMessage> =
            self.handle.link().get().match_index(*index).execute().try_collect().await?;
        Ok(links.iter().flat_map(|l| &l.attributes).find_map(|a| match a {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        }))
    }
}

fn name_of(link: &LinkMessage) -> String {
    let name = link.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap_or_default()
}
