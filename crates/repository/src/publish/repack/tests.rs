//! Which packs go, and how much of them with one publication.

use collective_model::{BLOCK_BYTES, Digest};

use super::{
    CLASS_PACKS, DEAD_BYTES, FETCH_BYTES, MOVED_BLOCKS, MOVED_BLOCKS_MAX, PackUse, fetches, select,
    uses, worst,
};
use crate::frame::{Codec, FrameRef};
use crate::manifest::PackEntry;
use crate::publish::assemble::PlacedRun;

fn id(pack: u8) -> Digest {
    Digest([pack; 32])
}

/// A pack all of which is needed.
fn alive(pack: u8, shown_blocks: u64) -> PackUse {
    let bytes = shown_blocks * BLOCK_BYTES;
    PackUse { pack: id(pack), shown_blocks, held_bytes: bytes, live_bytes: bytes }
}

/// Packs of some blocks each; their ids count from 0.
fn packs(blocks: &[u64]) -> Vec<PackUse> {
    blocks.iter().enumerate().map(|(pack, blocks)| alive(pack as u8, *blocks)).collect()
}

fn worst_of(blocks: &[u64]) -> Vec<u64> {
    let uses = packs(blocks);
    worst(&uses).iter().map(|pack| blocks[pack.0[0] as usize]).collect()
}

fn frame(pack: u8, number: u64, blocks: u32) -> FrameRef {
    FrameRef {
        hash: Digest([number as u8; 32]),
        pack: id(pack),
        offset: 64 + number * u64::from(blocks) * BLOCK_BYTES,
        stored_bytes: blocks * BLOCK_BYTES as u32,
        blocks,
        codec: Codec::Raw,
    }
}

/// Runs that each show some first blocks of a frame of their own.
fn shown(pack: u8, count: u64, shown: u32, blocks: u32) -> Vec<PlacedRun> {
    let run = |number| PlacedRun {
        start: u64::from(pack) * 1_000_000 + number * 1000,
        count: shown,
        frame: frame(pack, number, blocks),
        first: 0,
    };
    (0..count).map(run).collect()
}

#[test]
fn small_packs_stay_until_their_class_is_full_and_then_go_with_all_smaller_ones() {
    assert!(worst_of(&[1; CLASS_PACKS - 1]).is_empty());
    assert_eq!(worst_of(&[1; CLASS_PACKS]), [1; CLASS_PACKS]);
    let medium = [vec![100; CLASS_PACKS], vec![3, 2000, 1023, 5000]].concat();
    assert_eq!(worst_of(&medium), [vec![3], vec![100; CLASS_PACKS]].concat());
    // A full class of small ones leaves the larger ones alone.
    assert_eq!(worst_of(&[vec![1; CLASS_PACKS], vec![500; 3]].concat()), [1; CLASS_PACKS]);
    assert!(worst_of(&[5000; 100]).is_empty());
}

#[test]
fn packs_that_are_mostly_dead_go_in_the_order_of_what_they_free() {
    let dead = |pack, shown_blocks, held_blocks: u64| PackUse {
        held_bytes: held_blocks * BLOCK_BYTES,
        ..alive(pack, shown_blocks)
    };
    let edge = 2 * DEAD_BYTES / BLOCK_BYTES;
    let uses = [
        dead(0, 3000, 6000),
        dead(1, 2000, 6000),
        dead(2, 100, 6000),
        dead(3, edge / 2, edge),
        dead(4, 1, 20),
    ];
    assert_eq!(worst(&uses), [id(2), id(1)]);
}

#[test]
fn a_pack_is_as_alive_as_the_frames_that_show_and_shows_at_every_copy() {
    let entry = |pack| PackEntry {
        id: id(pack),
        bytes: 64 + 1_000_000 + 200,
        table_bytes: 200,
        table_hash: id(pack),
    };
    let mut runs = shown(1, 2, 2, 8);
    // A frame that shows in full, and some of it once more.
    runs.extend(shown(2, 1, 4, 4));
    runs.push(PlacedRun { start: 9, count: 2, first: 1, ..shown(2, 1, 4, 4)[0] });
    let uses = uses(&[entry(3), entry(2), entry(1)], runs.iter());
    let expected = |pack, shown_blocks, live_blocks| PackUse {
        pack: id(pack),
        shown_blocks,
        held_bytes: 1_000_000,
        live_bytes: live_blocks * BLOCK_BYTES,
    };
    assert_eq!(uses, [expected(2, 6, 4), expected(1, 4, 4)]);
}

#[test]
fn no_publication_moves_or_fetches_more_than_its_budget() {
    let full = shown(1, 1000, 64, 64);
    let moved = |runs: &[PlacedRun], read_blocks| {
        let moving = select(&[runs], &[id(1)], read_blocks);
        moving.iter().map(|it| u64::from(it.run.count)).sum::<u64>()
    };
    assert_eq!(moved(&full, 1), MOVED_BLOCKS);
    assert_eq!(moved(&full, 10_048), 4992, "half, in whole runs");
    assert_eq!(moved(&full, u64::MAX), MOVED_BLOCKS_MAX);
    // One block of every frame: four times what is moved may be fetched.
    assert_eq!(moved(&shown(1, 1000, 1, 64), 1), 4 * MOVED_BLOCKS / 64);
}

#[test]
fn the_worst_go_first_of_all_disks_and_others_not_at_all() {
    let (one, two) = (shown(1, 2, 1, 1), shown(2, 2, 1, 1));
    let mixed = [two[1], one[0], shown(3, 1, 1, 1)[0]];
    let moving = select(&[&mixed, &[one[1], two[0]]], &[id(2), id(1)], 1);
    let order: Vec<_> = moving.iter().map(|it| (it.disk, it.run)).collect();
    assert_eq!(order, [(1, two[0]), (0, two[1]), (0, one[0]), (1, one[1])]);
}

#[test]
fn a_frame_is_fetched_once_and_never_too_much_at_a_time() {
    let mut runs = shown(1, 100, 256, 256);
    runs.push(PlacedRun { start: 7, count: 1, first: 3, ..runs[0] });
    let moving = select(&[&runs], &[id(1)], u64::MAX);
    let fetches = fetches(&moving);
    assert_eq!(fetches[0][0].len(), 2, "both runs of the first frame");
    let frames: usize = fetches.iter().map(Vec::len).sum();
    assert_eq!(frames, moving.len() - 1);
    for fetch in fetches {
        let plain = fetch.iter().map(|group| group[0].run.frame.plain_bytes()).sum::<usize>();
        assert!(plain > 0 && plain <= FETCH_BYTES);
    }
}
