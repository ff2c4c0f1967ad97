//! ArgosFS beside its peers: btrfs (raid6 data, raid1c3 metadata), ext4, and a null FUSE filesystem as the ceiling of
//! any filesystem behind FUSE, all on loop devices over files of one disk, in one run.
//!
//! `cargo build --release --example nullfs && cargo bench --bench peers -- [DIR] [--rounds N] [--only NAME,..]`
//! needs root, loop devices and btrfs-progs. Prints a row per kind of work: absolute rates, then ratios.

mod setup;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;

use setup::Peer;
use work::{ROWS, Row};

fn main() -> ExitCode {
    let mut directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("peers");
    let mut rounds = 1;
    let mut only: Option<Vec<String>> = None;
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => rounds = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(1),
            "--only" => only = arguments.next().map(|names| names.split(',').map(str::to_owned).collect()),
            path => directory = PathBuf::from(path),
        }
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: the comparison with other filesystems needs root for loop devices and mounts");
        return ExitCode::SUCCESS;
    }
    let mut peers: Vec<(Peer, Vec<f64>)> = Vec::new();
    for peer in Peer::ALL {
        if only.as_ref().is_some_and(|only| !only.iter().any(|name| name == peer.name())) {
            continue;
        }
        match measure(peer, &directory, rounds) {
            Ok(rates) => peers.push((peer, rates)),
            Err(why) => eprintln!("{}: left out: {why}", peer.name()),
        }
    }
    print(&peers);
    ExitCode::SUCCESS
}

/// The best of `rounds` for each row; NaN where a peer has no such row.
fn measure(peer: Peer, directory: &std::path::Path, rounds: usize) -> Result<Vec<f64>, String> {
    let mut best = vec![f64::NAN; ROWS.len()];
    for _ in 0..rounds {
        let mut rig = peer.start(directory)?;
        for (row, best) in ROWS.iter().zip(&mut best) {
            let Some(rate) = (row.run)(&mut rig)? else { continue };
            eprintln!("{:>8}  {:<44} {rate:>12.1} {}", peer.name(), row.name, row.unit);
            *best = best.max(rate);
        }
        rig.stop()?;
    }
    Ok(best)
}

fn print(peers: &[(Peer, Vec<f64>)]) {
    let names: Vec<&str> = peers.iter().map(|(peer, _)| peer.name()).collect();
    println!("| | unit | {} |", names.join(" | "));
    println!("|---|---|{}", "---|".repeat(names.len()));
    for (at, Row { name, unit, .. }) in ROWS.iter().enumerate() {
        let rates = peers.iter().map(|(_, rates)| match rates[at] {
            rate if rate.is_nan() => "-".to_owned(),
            rate => format!("{rate:.0}"),
        });
        println!("| {name} | {unit} | {} |", rates.collect::<Vec<_>>().join(" | "));
    }
    let Some((_, own)) = peers.iter().find(|(peer, _)| *peer == Peer::Argos) else { return };
    println!("\nArgosFS as a multiple of:\n");
    let others: Vec<_> = peers.iter().filter(|(peer, _)| *peer != Peer::Argos).collect();
    println!("| | {} |", others.iter().map(|(peer, _)| peer.name()).collect::<Vec<_>>().join(" | "));
    println!("|---|{}", "---|".repeat(others.len()));
    for (at, row) in ROWS.iter().enumerate() {
        let ratios = others.iter().map(|(_, rates)| match own[at] / rates[at] {
            ratio if ratio.is_nan() => "-".to_owned(),
            ratio => format!("{ratio:.2}"),
        });
        println!("| {} | {} |", row.name, ratios.collect::<Vec<_>>().join(" | "));
    }
}
