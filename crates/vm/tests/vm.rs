//! Tests of the machine room that need QEMU, root or the distribution's tools.

#![expect(clippy::unwrap_used, reason = "what fails here fails its test")]

#[path = "vm/graph.rs"]
mod graph;
#[path = "vm/image.rs"]
mod image;
#[path = "vm/launch.rs"]
mod launch;
#[path = "vm/qemu.rs"]
mod qemu;
#[path = "vm/scene.rs"]
mod scene;
#[path = "vm/tiny.rs"]
mod tiny;
