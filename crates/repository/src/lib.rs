//! Versions of disks at rest: blocks, frames, packs, indexes and signed manifests, published, fetched, verified and pruned.
