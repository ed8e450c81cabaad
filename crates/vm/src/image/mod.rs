//! Disks out of nothing: what a user has becomes a raw disk, and a recipe becomes an appliance.
//!
//! [`convert`] turns a raw, qcow2, vmdk or vdi file into a sparse raw one and refuses, by name, what is no disk.
//! [`recipe`] is the file that describes an appliance; [`plan`] turns it into steps with nothing left to decide;
//! [`build`] carries them out with Debian's own tools, needs no loop device, and leaves nothing behind
//! when it fails. Publishing what comes out is left to others.

pub mod build;
pub mod convert;
pub mod plan;
pub mod recipe;

mod boot;
mod cached;
mod probe;
mod tool;

pub use build::{BuildMonitor, BuildOptions, BuildStep, BuiltAppliance, Unwatched, build};
pub use cached::build_cached;
pub use convert::{Converted, convert};
pub use recipe::Recipe;
