//! What leaves the cache when it is full: whole segments, oldest first, and what in them is worth keeping.
//!
//! Pure. A segment that is half or more held by pins stays where it is: copying it would gain little. From any
//! other, pinned frames are copied forward, and of those that were read since they came, as many as leave half of
//! the segment's bytes free. So each step frees at least half a segment, and a frame that is read once in
//! the time the cache takes to turn over stays for ever.

/// A segment that could leave.
#[derive(Clone, Copy, Debug)]
pub(super) struct SegmentUse {
    pub bytes: u64,
    /// Bytes of frames that are pinned.
    pub pinned_bytes: u64,
}

/// A frame of a segment that leaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameUse {
    pub bytes: u64,
    pub pinned: bool,
    /// It was read since it came or was last spared.
    pub touched: bool,
}

/// Chooses which segment leaves, of all sealed ones from the oldest to the newest.
pub(super) fn victim(segments: impl IntoIterator<Item = SegmentUse>) -> Option<usize> {
    segments.into_iter().position(|segment| segment.pinned_bytes * 2 < segment.bytes.max(1))
}

/// Chooses which frames of a leaving segment are copied forward.
pub(super) fn survivors(frames: &[FrameUse], segment_bytes: u64) -> Vec<bool> {
    let mut budget = segment_bytes / 2;
    let mut kept = vec![false; frames.len()];
    for pinned in [true, false] {
        for (kept, frame) in kept.iter_mut().zip(frames) {
            let wanted = if pinned { frame.pinned } else { !frame.pinned && frame.touched };
            if wanted && frame.bytes <= budget {
                budget -= frame.bytes;
                *kept = true;
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::{FrameUse, SegmentUse, survivors, victim};

    #[test]
    fn the_oldest_segment_that_pins_do_not_hold_leaves() {
        let segment = |pinned_bytes| SegmentUse { bytes: 100, pinned_bytes };
        assert_eq!(victim([segment(80), segment(50), segment(49), segment(0)]), Some(2));
        assert_eq!(victim([segment(80), segment(50)]), None);
        assert_eq!(victim([SegmentUse { bytes: 0, pinned_bytes: 0 }]), Some(0));
    }

    #[test]
    fn pinned_frames_are_kept_before_touched_ones_and_half_is_freed() {
        let frame = |pinned, touched| FrameUse { bytes: 20, pinned, touched };
        let frames =
            [frame(false, true), frame(false, true), frame(true, false), frame(false, false)];
        assert_eq!(survivors(&frames, 100), [true, false, true, false]);
        assert_eq!(survivors(&frames, 200), [true, true, true, false]);
        assert_eq!(survivors(&frames, 40), [false, false, true, false]);
    }
}
