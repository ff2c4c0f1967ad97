//! ArgosFS beside its peers: btrfs (raid6 data, raid1c3 metadata), ext4, and a null FUSE filesystem as the ceiling of
//! any filesystem behind FUSE, all on loop devices over files of one disk, in one run.
//!
//! `cargo bench --bench peers -- [DIR] [--rounds N] [--only PEER,..]
//! [--rows WORD,..]` needs root, loop devices and btrfs-progs. Prints a row per kind of work: absolute rates, the best of
//! the rounds, in which the peers take turns; then ratios.

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
    let mut wanted: Option<Vec<String>> = None;
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => rounds = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(1),
            "--only" => only = arguments.next().map(words),
            "--rows" => wanted = arguments.next().map(words),
            path => directory = PathBuf::from(path),
        }
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: the comparison with other filesystems needs root for loop devices and mounts");
        return ExitCode::SUCCESS;
    }
    let chosen = |peer: &Peer| only.as_ref().is_none_or(|only| only.iter().any(|name| name == peer.name()));
    let mut peers: Vec<(Peer, Vec<f64>)> =
        Peer::ALL.into_iter().filter(chosen).map(|peer| (peer, vec![f64::NAN; ROWS.len()])).collect();
    let wanted =
        |row: &Row| wanted.as_ref().is_none_or(|words| words.iter().any(|word| row.name.contains(word.as_str())));
    for _ in 0..rounds {
        peers.retain_mut(|(peer, best)| match measure(*peer, &directory, wanted, best) {
            Ok(()) => true,
            Err(why) => {
                eprintln!("{}: left out: {why}", peer.name());
                false
            }
        });
    }
    print(&peers);
    ExitCode::SUCCESS
}

fn words(list: String) -> Vec<String> {
    list.split(',').map(str::to_owned).collect()
}

/// One round: raises what is `best` for each row; it stays NaN where a peer has no such row.
fn measure(
    peer: Peer,
    directory: &std::path::Path,
    wanted: impl Fn(&Row) -> bool,
    best: &mut [f64],
) -> Result<(), String> {
    let mut rig = peer.start(directory)?;
    for (row, best) in ROWS.iter().zip(best).filter(|(row, _)| wanted(row)) {
        let Some(rate) = (row.run)(&mut rig)? else { continue };
        eprintln!("{:>8}  {:<44} {rate:>12.1} {}", peer.name(), row.name, row.unit);
        *best = best.max(rate);
    }
    rig.stop()
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
