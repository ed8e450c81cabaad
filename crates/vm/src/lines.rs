//! Lines of a bounded length from somebody who is not trusted.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// Reads one line, without its end, into `line`; false at the end of the stream.
///
/// # Errors
/// `InvalidData` when the line is longer than `limit_bytes`; what is left of it stays unread, so the stream is of no use
/// afterwards.
pub(crate) async fn read_line(
    reader: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
    limit_bytes: usize,
) -> io::Result<bool> {
    line.clear();
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            return Ok(!line.is_empty());
        }
        let end = available.iter().position(|&byte| byte == b'\n');
        let part = &available[..end.unwrap_or(available.len())];
        if line.len() + part.len() > limit_bytes {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a line is longer than {limit_bytes} bytes"),
            ));
        }
        line.extend_from_slice(part);
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::read_line;

    #[tokio::test]
    async fn a_line_over_the_limit_is_refused_before_it_is_held() {
        let mut reader: &[u8] = b"short\r\n\nlong line\nlast";
        let mut line = Vec::new();
        assert!(read_line(&mut reader, &mut line, 8).await.unwrap());
        assert_eq!(line, b"short\r");
        assert!(read_line(&mut reader, &mut line, 8).await.unwrap());
        assert!(line.is_empty());
        let error = read_line(&mut reader, &mut line, 8).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
        assert!(line.len() <= 8);
    }

    #[tokio::test]
    async fn the_last_line_needs_no_end() {
        let mut reader: &[u8] = b"last";
        let mut line = Vec::new();
        assert!(read_line(&mut reader, &mut line, 8).await.unwrap());
        assert_eq!(line, b"last");
        assert!(!read_line(&mut reader, &mut line, 8).await.unwrap());
    }
}
