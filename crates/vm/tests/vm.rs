//! Tests of the machine room that need QEMU, root or the distribution's tools.

#[path = "vm/image.rs"]
mod image;
