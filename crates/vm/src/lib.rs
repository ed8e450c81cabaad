//! One virtual machine: its arguments, its life-cycle, its layers, and the tools that make its disks.
//!
//! Read in this order: [`spec`] says what machine is wanted and turns it into arguments; [`qemu`] finds the programs and
//! [`accelerator`] what can run guests here; [`process`] starts one, detached, and finds it again; [`qmp`] and
//! [`agent`] talk to it and to its guest; [`layer`] and [`graph`] are its disks, at rest and while it runs;
//! [`image`] makes disks out of recipes and of what users have.
//! [`lifecycle`] and [`admission`] decide, without doing anything themselves, what is to be done next.
//!
//! What a disk's base holds, where versions come from and who may start what is left to others.

#![warn(missing_docs)]

pub mod accelerator;
pub mod admission;
pub mod agent;
pub mod graph;
pub mod image;
pub mod layer;
pub mod lifecycle;
pub mod process;
pub mod qemu;
pub mod qmp;
pub mod spec;

mod blockdev;
mod lines;
mod tool;
