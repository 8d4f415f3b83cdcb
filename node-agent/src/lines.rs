//! Lines of bounded length from a stream.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Reads lines.
pub struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    longest: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// Of at most `longest` bytes, without the line feed.
    pub fn new(reader: R, longest: usize) -> Self {
        Self { reader, buffer: Vec::new(), longest }
    }

    /// The next line, `None` at the end. Can be cancelled without a loss.
    ///
    /// # Errors
    /// If the stream breaks, or a line is too long or no text.
    pub async fn next(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                if line.len() > self.longest {
                    return Err(io::Error::other("a line is too long"));
                }
                return String::from_utf8(line).map(Some).map_err(io::Error::other);
            }
            if self.buffer.len() > self.longest {
                return Err(io::Error::other("a line is too long"));
            }
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_come_one_by_one_and_a_long_one_ends_it() {
        let mut lines = Lines::new(&b"one\n\nthree\nfourth is too long\n"[..], 8);
        let mut read = Vec::new();
        while let Ok(Some(line)) = lines.next().await {
            read.push(line);
        }
        assert_eq!(read, ["one", "", "three"]);
        let mut endless = Lines::new(tokio::io::repeat(b'x'), 8);
        assert!(endless.next().await.is_err());
        assert!(Lines::new(&b"cut"[..], 8).next().await.unwrap().is_none());
    }
}
