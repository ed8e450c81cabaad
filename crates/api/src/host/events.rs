//! Reads server-sent events: bytes in as they come, the data of whole events out. Pure.

use collective_model::{Error, ErrorKind, Result};

/// Bytes of one event, at most: a server that never ends an event does not fill our memory.
const EVENT_BYTES: usize = 1 << 20;

/// Takes bytes of an event stream and gives the data of each event.
#[derive(Debug, Default)]
pub(super) struct EventReader {
    buffer: Vec<u8>,
    data: String,
}

impl EventReader {
    /// Takes the next bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() + self.data.len() > EVENT_BYTES {
            return Err(Error::new(ErrorKind::Corrupt, "an event is longer than 1 MiB"));
        }
        Ok(())
    }

    /// Gives the data of the next whole event, if it is here.
    pub(super) fn next(&mut self) -> Option<String> {
        loop {
            let end = self.buffer.iter().position(|byte| *byte == b'\n')?;
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\r', '\n']);
            if line.is_empty() {
                if !self.data.is_empty() {
                    return Some(std::mem::take(&mut self.data));
                }
            } else if let Some(data) = line.strip_prefix("data:") {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::EventReader;

    #[test]
    fn events_come_out_whole_however_the_bytes_are_cut() {
        let text =
            b": hello\n\ndata: {\"a\":1}\n\nevent: x\r\ndata: b\r\ndata: c\r\n\r\ndata: half";
        for cut in 1..text.len() {
            let mut reader = EventReader::default();
            let mut events = Vec::new();
            for bytes in text.chunks(cut) {
                reader.push(bytes).unwrap();
                events.extend(std::iter::from_fn(|| reader.next()));
            }
            assert_eq!(events, ["{\"a\":1}", "b\nc"], "cut {cut}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut reader = EventReader::default();
        assert!(reader.push(&vec![b'x'; (1 << 20) + 1]).is_err());
    }
}
