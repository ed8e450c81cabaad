//! One virtual machine: its arguments, its life-cycle, its layers, and the tools that make its disks.

#![warn(missing_docs)]

pub mod image;
