//! Pages and directories: what is written is read, and nothing else is.

use std::sync::Arc;

use bytes::Bytes;
use collective_model::{BlockRange, Digest, DiskRole, ErrorKind, RepositoryId, Version};
use proptest::prelude::{Strategy, any, prop, prop_assert_eq, proptest};

use super::{Index, IndexExtent, IndexReader, IndexSource};
use crate::backend::{Backend, CallKind, Fault, Faulty, Memory};
use crate::descriptor::{Descriptor, Kind};
use crate::frame::{Codec, FrameRef};
use crate::keys::RepositorySecret;
use crate::manifest::{DiskManifest, PackEntry};
use crate::sealer::Sealer;

fn digest(number: u64) -> Digest {
    Digest(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

fn sealer() -> Arc<Sealer> {
    let secret = RepositorySecret::new([1; 32]);
    let descriptor = Descriptor::private(RepositoryId([1; 16]), Kind::UserDisk, &secret);
    Arc::new(Sealer::new(&descriptor, Some(&secret)))
}

fn packs(count: u64) -> Vec<PackEntry> {
    let pack = |number| PackEntry {
        id: digest(number),
        bytes: 1 << 20,
        table_bytes: 100,
        table_hash: digest(number),
    };
    (0..count).map(pack).collect()
}

/// Stores an index and opens it; `blocks` is the size of the disk.
async fn stored(index: &Index, blocks: u64, backend: Arc<dyn Backend>) -> IndexReader {
    let packs = packs(9);
    let encoded = index.encode(blocks, &packs, &sealer()).unwrap();
    let disk = DiskManifest {
        role: DiskRole::System,
        size_bytes: blocks * 4096,
        data_bytes: index.data_bytes(),
        index: encoded.entry,
        trace: None,
    };
    let packs = packs.iter().map(|pack| pack.id).collect();
    let source = IndexSource { version: Version::FIRST, disk, packs };
    let name = source.disk.index_name(Version::FIRST);
    backend.write(&name, Bytes::from(encoded.bytes)).await.unwrap();
    IndexReader::open(backend, sealer(), source).await.unwrap()
}

/// Frames in some packs, and extents that jump about in them.
fn indexes() -> impl Strategy<Value = Index> {
    let frames = prop::collection::vec((0_u64..2, 0_u64..9, 1_u32..4096, 1_u32..=256), 1..3000);
    let extents =
        prop::collection::vec((0_u64..50, any::<u32>(), any::<u32>(), any::<u32>()), 0..9000);
    (frames, extents).prop_map(|(frames, extents)| {
        let mut index = Index::default();
        let (mut pack, mut offset) = (0, 64);
        for (number, (step, gap, stored_bytes, blocks)) in frames.into_iter().enumerate() {
            if number % 400 == 399 && pack + step < 9 && step > 0 {
                (pack, offset) = (pack + step, 64);
            }
            let frame = FrameRef {
                hash: digest(number as u64),
                pack: digest(pack),
                offset: offset + gap,
                stored_bytes,
                blocks,
                codec: if gap == 0 { Codec::Raw } else { Codec::Zstd },
            };
            offset = frame.end();
            index.frames.push(frame);
        }
        let mut start = 0;
        for (gap, frame, first, count) in extents {
            let frame = frame % index.frames.len() as u32;
            let blocks = index.frames[frame as usize].blocks;
            let first = first % blocks;
            let count = 1 + count % (blocks - first);
            index.extents.push(IndexExtent { start: start + gap, count, frame, first });
            start += gap + u64::from(count);
        }
        index
    })
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

    #[test]
    fn an_index_survives(index in indexes()) {
        run(async {
            let reader = stored(&index, 1 << 24, Arc::new(Memory::new())).await;
            prop_assert_eq!(reader.load().await.unwrap(), index);
            Ok(())
        })?;
    }

    #[test]
    fn a_range_is_mapped_as_a_walk_over_all_extents_maps_it(
        index in indexes(),
        start in 0_u64..200_000,
        count in 0_u64..20_000,
    ) {
        let range = BlockRange::new(start, count);
        let walked: Vec<_> = index
            .extents
            .iter()
            .map(|extent| (extent, extent.range().intersection(range)))
            .filter(|(_, shared)| !shared.is_empty())
            .map(|(extent, shared)| {
                let first = extent.first + (shared.start - extent.start) as u32;
                (shared, index.frames[extent.frame as usize], first)
            })
            .collect();
        run(async {
            let reader = stored(&index, 1 << 24, Arc::new(Memory::new())).await;
            let mapped = reader.map(range).await.unwrap();
            let mapped: Vec<_> =
                mapped.into_iter().map(|it| (it.range, it.frame, it.first)).collect();
            prop_assert_eq!(mapped, walked);
            Ok(())
        })?;
    }
}

fn one_extent_each(count: u32) -> Index {
    let frame = |number: u32| FrameRef {
        hash: digest(u64::from(number)),
        pack: digest(0),
        offset: 64 + 10 * u64::from(number),
        stored_bytes: 10,
        blocks: 64,
        codec: Codec::Zstd,
    };
    let extent = |number: u32| IndexExtent {
        start: 64 * u64::from(number),
        count: 64,
        frame: number,
        first: 0,
    };
    Index { frames: (0..count).map(frame).collect(), extents: (0..count).map(extent).collect() }
}

#[tokio::test]
async fn a_small_index_takes_one_read_and_a_huge_one_only_what_is_asked_for() {
    for (frames, calls_for_one_range) in [(1000, 0), (100_000, 2)] {
        let memory: Arc<dyn Backend> = Arc::new(Memory::new());
        let faulty = Arc::new(Faulty::new(memory, |_| Fault::Pass));
        let index = one_extent_each(frames);
        let reader = stored(&index, 64 * u64::from(frames), faulty.clone()).await;
        // The write of the object, and the read of the whole or of the directory.
        assert_eq!(faulty.calls(), 2);
        let range = BlockRange::new(64 * 900, 64);
        assert_eq!(reader.map(range).await.unwrap().len(), 1);
        assert_eq!(faulty.calls(), 2 + calls_for_one_range);
        reader.map(range).await.unwrap();
        assert_eq!(faulty.calls(), 2 + calls_for_one_range, "pages are kept");
    }
}

#[tokio::test]
async fn a_page_that_is_damaged_on_the_way_is_named_and_not_used() {
    let memory: Arc<dyn Backend> = Arc::new(Memory::new());
    let index = one_extent_each(100_000);
    stored(&index, 6_400_000, memory.clone()).await;
    let damage = |call: crate::backend::Call| match call.kind {
        // Call 0 writes, call 1 reads the directory, then come pages.
        CallKind::Read if call.number >= 2 => Fault::Flip(call.number as usize * 7),
        _ => Fault::Pass,
    };
    let reader = stored(&index, 6_400_000, Arc::new(Faulty::new(memory, damage))).await;
    let error = reader.map(BlockRange::new(0, 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.chain().contains("versions/1/system-"), "{error:?}");
    assert!(error.chain().contains("page at"), "{error:?}");
}
