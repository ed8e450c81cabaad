//! Replies on their way out: a buffer that is filled in place and written with one call.
//!
//! Warm data is read straight into it, behind its reply's head, and all replies that are ready leave together. The
//! memory is kept and never cleared between requests, so a reply costs neither an allocation nor a copy.

/// Replies gathered before some must leave, at most; bounds a connection's memory, and no reply waits long for others.
pub(super) const OUTPUT_BYTES: usize = 256 * 1024;

/// Bytes waiting to be written.
#[derive(Default)]
pub(super) struct Output {
    /// All of it is initialised; only `start..end` counts.
    memory: Vec<u8>,
    start: usize,
    end: usize,
}

impl Output {
    /// Returns what is to be written.
    pub fn waiting(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    /// Tells whether nothing is to be written.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Tells whether more replies should wait until some have left.
    pub fn is_full(&self) -> bool {
        self.end >= OUTPUT_BYTES
    }

    /// Takes note that `count` bytes were written.
    pub fn written(&mut self, count: usize) {
        self.start += count;
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Appends bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Appends `head` and `length` bytes that `fill` provides; nothing at all if it cannot.
    pub fn push_filled(
        &mut self,
        head: &[u8],
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> bool,
    ) -> bool {
        let room = self.room(head.len() + length);
        let (start, data) = room.split_at_mut(head.len());
        if !fill(data) {
            return false;
        }
        start.copy_from_slice(head);
        self.end += head.len() + length;
        true
    }

    /// Appends what `encode` writes.
    pub fn push_encoded(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = Vec::new();
        encode(&mut bytes);
        self.push(&bytes);
    }

    fn room(&mut self, length: usize) -> &mut [u8] {
        let needed = self.end + length;
        if self.memory.len() < needed {
            self.memory.resize(needed, 0);
        }
        &mut self.memory[self.end..needed]
    }
}

#[cfg(test)]
mod tests {
    use super::Output;

    #[test]
    fn what_could_not_be_filled_leaves_no_trace() {
        let mut output = Output::default();
        output.push(b"a");
        assert!(!output.push_filled(b"head", 4, |data| {
            data.fill(b'x');
            false
        }));
        assert!(output.push_filled(b"b", 1, |data| {
            data.fill(b'c');
            true
        }));
        assert_eq!(output.waiting(), b"abc");
    }

    #[test]
    fn memory_is_used_again_once_all_is_written() {
        let mut output = Output::default();
        for _ in 0..100 {
            output.push(&[7; 100]);
            output.written(60);
            output.written(40);
        }
        assert!(output.is_empty());
        assert_eq!(output.memory.len(), 100);
    }
}
