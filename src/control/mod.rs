//! The operations that commands perform on a pool, and the socket by which they reach one that is mounted.
//! Above: `cli` talks to people. Below: `fs`, `check` and `store` do the work.
//!
//! Invariant: an operation is one function of this layer, run by the daemon of a mounted pool or by the command itself,
//! so its answer is the same either way.

pub mod archive;
pub mod client;
pub mod frame;
pub mod locate;
pub mod mounts;
pub mod open;
mod ops;
pub mod protocol;
pub mod runtime;
pub mod scrub;
pub mod server;
pub mod service;
pub mod status;
pub mod work;

#[cfg(test)]
mod tests;

pub use client::Client;
pub use protocol::{Info, Outcome, Request};
pub use server::{Reply, Server, Service};
