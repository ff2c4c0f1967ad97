//! The `argosfs` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    argosfs::cli::main()
}
