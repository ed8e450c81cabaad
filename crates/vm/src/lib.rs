//! One virtual machine: its arguments, its life-cycle, its layers, and the tools that make its disks.
