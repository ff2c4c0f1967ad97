//! Works on a mounted pool and knows at any moment what has to be there: the workload of `tests/run-kill` and
//! `tests/run-faults`.
//!
//!     hammer crash DIR SIDE ARGOSFS SEED [writeback]   makes SIDE/begun and writes until the daemon dies, waits for
//!                                                      SIDE/again, verifies
//!     hammer fill DIR MANIFEST MIX SEED [BYTES]        four writers, until the pool is full or has BYTES more
//!     hammer pump DIR MANIFEST SECONDS SEED            writes, syncs and reads back; nothing may fail
//!     hammer check MANIFEST                            reads everything back
//!     hammer flip FILE COUNT SEED                      turns over COUNT random bits of a device
//!     hammer limit LOOP BYTES                          lets a loop device end after BYTES, as if pulled out; 0: back

mod crash;
mod damage;
mod files;
mod pattern;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["crash", dir, side, argosfs, seed] => crash::run(dir, side, argosfs, number(seed), false),
        ["crash", dir, side, argosfs, seed, "writeback"] => crash::run(dir, side, argosfs, number(seed), true),
        ["fill", dir, manifest, mix, seed] => files::fill(dir, manifest, mix, number(seed), u64::MAX),
        ["fill", dir, manifest, mix, seed, bytes] => files::fill(dir, manifest, mix, number(seed), number(bytes)),
        ["pump", dir, manifest, seconds, seed] => files::pump(dir, manifest, number(seconds), number(seed)),
        ["flip", file, count, seed] => damage::flip(file, number(count), number(seed)),
        ["limit", device, bytes] => damage::limit(device, number(bytes)),
        ["check", manifest] => files::check(manifest),
        _ => Err("usage: see the head of examples/hammer/main.rs".to_owned()),
    };
    match done {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("hammer: {why}");
            ExitCode::FAILURE
        }
    }
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("{word} is no number"))
}
