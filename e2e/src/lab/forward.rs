//! A port in one network namespace that leads to an address in another.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};

use super::process::enter_netns;

/// Listens here, then enters `netns` and connects there, for ever.
///
/// # Errors
/// If the port is taken or there is no such namespace.
pub fn run(listen: &str, netns: &str, to: &str) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen)?;
    // The listener stays where it was made; connections are made where we are.
    enter_netns(netns)?;
    for stream in listener.incoming() {
        let to = to.to_string();
        std::thread::spawn(move || {
            let Ok(near) = stream else { return };
            let Ok(far) = TcpStream::connect(&to) else { return };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let (Ok(near2), Ok(far2)) = (near.try_clone(), far.try_clone()) else { return };
            let back = std::thread::spawn(move || copy(&far2, &near2));
            copy(&near, &far);
            let _ = back.join();
        });
    }
    Ok(())
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
