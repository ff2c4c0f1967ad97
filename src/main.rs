//! The `argosfs` command.

fn main() {}
