//! The command line: one file per command, one table of all. Above: people and scripts. Below: `control` performs the
//! operations, `fuse` mounts. This is the only layer that prints.

mod daemon;
mod damage;
mod debug;
mod demo;
mod device;
mod exit;
mod export_meta;
mod fsck;
mod helper;
mod import_meta;
mod log;
mod mkfs;
mod mount;
mod options;
mod output;
mod rebuild;
mod recover;
mod scrub;
mod status;
mod sync;
mod target;
mod trim;
mod umount;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::base::Result;
use exit::Convention;
use output::Output;

/// One checked, redundant filesystem over several unequal local devices.
#[derive(Parser, Debug)]
#[command(name = "argosfs", version, after_long_help = exit::HELP, after_help = "`argosfs --help` lists the exit codes.")]
struct Arguments {
    /// Print answers as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

/// The table of all commands.
#[derive(Subcommand, Debug)]
enum Command {
    /// Make a pool of devices, image files or directories.
    Mkfs(mkfs::Arguments),
    /// Mount a pool; returns when it is mounted.
    Mount(mount::Arguments),
    /// Unmount a pool; returns when everything is durable and its daemon is gone.
    Umount(umount::Arguments),
    /// Tell how a pool fares: exit code 0 healthy, 1 degraded, 2 faulted.
    Status(status::Arguments),
    /// Make everything in a mounted pool durable.
    Sync(sync::Arguments),
    /// Change the devices of a pool.
    Device(device::Arguments),
    /// Bring everything back to full redundancy on the devices that are there.
    Rebuild(rebuild::Arguments),
    /// Read and verify everything, and repair what is bad.
    Scrub(scrub::Arguments),
    /// Name the files with content that cannot be read any more, and do something about them.
    Damage(damage::Arguments),
    /// Tell the devices which of their blocks are free; a mount does it by itself as files go.
    Trim(trim::Arguments),
    /// Check the metadata, with --data every shard too; with --repair correct it. Without, nothing is changed.
    Fsck(fsck::Arguments),
    /// Write the whole metadata as canonical JSON with a digest.
    ExportMeta(export_meta::Arguments),
    /// Make the metadata again from an export, when every copy of it is gone.
    ImportMeta(import_meta::Arguments),
    /// Make the metadata again from its newest archive and the shards that are newer, when every copy of it is gone.
    Recover(recover::Arguments),
    /// Rehearse failures.
    #[command(hide = true)]
    Debug(debug::Arguments),
    /// Show it all in a directory: make, mount, lose devices, rebuild, check.
    Demo(demo::Arguments),
}

impl Command {
    fn run(&self, output: Output) -> Result<u8> {
        match self {
            Command::Mkfs(arguments) => mkfs::run(arguments, output),
            Command::Mount(arguments) => mount::run(arguments, output),
            Command::Umount(arguments) => umount::run(arguments, output),
            Command::Status(arguments) => status::run(arguments, output),
            Command::Sync(arguments) => sync::run(arguments, output),
            Command::Device(arguments) => device::run(arguments, output),
            Command::Rebuild(arguments) => rebuild::run(arguments, output),
            Command::Scrub(arguments) => scrub::run(arguments, output),
            Command::Damage(arguments) => damage::run(arguments, output),
            Command::Trim(arguments) => trim::run(arguments, output),
            Command::Fsck(arguments) => fsck::run(arguments, output),
            Command::ExportMeta(arguments) => export_meta::run(arguments, output),
            Command::ImportMeta(arguments) => import_meta::run(arguments, output),
            Command::Recover(arguments) => recover::run(arguments, output),
            Command::Debug(arguments) => debug::run(arguments, output),
            Command::Demo(arguments) => demo::run(arguments, output),
        }
    }

    fn convention(&self) -> Convention {
        match self {
            Command::Fsck(_) => Convention::Fsck,
            _ => Convention::Own,
        }
    }
}

/// Runs the command this process was started with.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    if let Some(command) = helper::of_name(words.first().map(OsString::as_os_str)) {
        return finish(helper::run(command, &words[1..]), Output { json: false }, Convention::MountHelper);
    }
    match Arguments::try_parse_from(&words) {
        Ok(arguments) => {
            let output = Output { json: arguments.json };
            finish(arguments.command.run(output), output, arguments.command.convention())
        }
        Err(error) => {
            let _ = error.print();
            let is_fsck = words.iter().any(|word| word == "fsck");
            match error.use_stderr() {
                true if is_fsck => Convention::Fsck.usage(),
                true => Convention::Own.usage(),
                false => ExitCode::SUCCESS,
            }
        }
    }
}

fn finish(result: Result<u8>, output: Output, convention: Convention) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output.error(&error);
            ExitCode::from(convention.of(&error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_table_of_commands_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_manual_parses() {
        for line in [
            "argosfs mkfs --k 4 --m 2 --name tank --size 1G --force a b c d e f",
            "argosfs mkfs --no-redundancy a",
            "argosfs mount tank /mnt -o ro,noatime --foreground --search /images",
            "argosfs umount /mnt",
            "argosfs status tank --json",
            "argosfs --json status",
            "argosfs sync /mnt",
            "argosfs device replace /dev/a /dev/b",
            "argosfs device replace --pool tank 3 /dev/b --force",
            "argosfs rebuild tank",
            "argosfs scrub",
            "argosfs scrub tank --background --limit 100M",
            "argosfs scrub --pause",
            "argosfs scrub --status --json",
            "argosfs damage tank",
            "argosfs damage --accept /a/b",
            "argosfs trim tank",
            "argosfs fsck --data tank",
            "argosfs export-meta tank -o out.json",
            "argosfs import-meta tank out.json --search /images --force --no-scrub --dry-run",
            "argosfs recover tank --search /images --force --no-scrub",
            "argosfs debug inject tank --device 3 --fault delay=200 --on write --range 1M+4K --one-in 10 --count 5",
            "argosfs debug inject --list",
            "argosfs demo /tmp/x --keep",
        ] {
            Arguments::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }
}
