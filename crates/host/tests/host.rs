//! The daemon as its users meet it: through its Unix socket, with a server made of directories.

#[cfg(test)]
#[path = "host/daemon.rs"]
mod daemon;
#[cfg(test)]
#[path = "host/directories.rs"]
mod directories;
#[cfg(test)]
#[path = "host/popular.rs"]
mod popular;
#[cfg(test)]
#[path = "host/qemu.rs"]
mod qemu;
