//! The repository from outside: what is published is what is read, whatever happens in between.

#[path = "repository/world.rs"]
mod world;

#[path = "repository/damage.rs"]
mod damage;
#[path = "repository/publish.rs"]
mod publish;
#[path = "repository/reference.rs"]
mod reference;
