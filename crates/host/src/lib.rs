//! The daemon of a computer that caches and runs appliances.

mod record;
mod subscription;
