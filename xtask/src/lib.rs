//! What the project's long runs share: the [`stage`], on which the demo and the whole-system tests play.

pub mod stage;
