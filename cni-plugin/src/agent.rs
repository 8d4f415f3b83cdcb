//! One request to the agent over its Unix socket: a big-endian length of 4 bytes and JSON, both
//! ways.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest answer in bytes.
const MAX_FRAME: u32 = 1 << 20;

/// Asks the agent; the whole exchange takes at most `within`.
///
/// # Errors
/// If the agent is not there or does not answer in time.
pub fn ask(socket: &Path, request: &Value, within: Duration) -> io::Result<Value> {
    let deadline = Instant::now() + within;
    let left = || {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::Error::from(io::ErrorKind::TimedOut)) } else { Ok(left) }
    };
    let mut stream = connect(socket, deadline)?;
    let bytes = serde_json::to_vec(request)?;
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.set_write_timeout(Some(left()?))?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(&bytes)?;
    let mut head = [0; 4];
    read_exact(&mut stream, &mut head, left)?;
    let length = u32::from_be_bytes(head);
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"));
    }
    let mut body = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    read_exact(&mut stream, &mut body, left)?;
    Ok(serde_json::from_slice(&body)?)
}

/// Connects. An agent that restarts is back in a moment, so a missing socket is tried again for
/// a third of the time.
fn connect(socket: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let patience = deadline.saturating_duration_since(Instant::now()) / 3;
    let give_up = Instant::now() + patience;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(e) if Instant::now() >= give_up => return Err(e),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn read_exact(
    stream: &mut UnixStream,
    mut buffer: &mut [u8],
    left: impl Fn() -> io::Result<Duration>,
) -> io::Result<()> {
    while !buffer.is_empty() {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => buffer = buffer.get_mut(n..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
