//! The kinds of work that are compared. Each returns a rate: more is better.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::setup::{Peer, Rig};

pub struct Row {
    pub name: &'static str,
    pub unit: &'static str,
    /// `None` where the peer cannot do it.
    pub run: fn(&mut Rig) -> Result<Option<f64>, String>,
}

pub const ROWS: &[Row] = &[
    Row { name: "sequential write 1 MiB + fsync", unit: "MiB/s", run: sequential_write },
    Row { name: "sequential read cold", unit: "MiB/s", run: sequential_read_cold },
    Row { name: "sequential read warm", unit: "MiB/s", run: |rig| rate(sequential_read(rig)) },
    Row { name: "random read 4k cold", unit: "IOPS", run: random_read },
    Row { name: "random write 4k, one fsync at the end", unit: "IOPS", run: random_write },
    Row { name: "write 4k + fsync each", unit: "per s", run: synchronous_writes },
    Row { name: "create 10,000 x 4 KiB files", unit: "per s", run: create },
    Row { name: "find + stat cold", unit: "per s", run: find },
    Row { name: "rm -rf of them", unit: "per s", run: remove },
    Row { name: "untar 11,000 files", unit: "per s", run: untar },
    Row { name: "degraded sequential read", unit: "MiB/s", run: degraded_read },
];

const FILE_MIB: usize = 512;
const FILES: usize = 10_000;
const MIB: usize = 1 << 20;

fn rate(result: io::Result<f64>) -> Result<Option<f64>, String> {
    result.map(Some).map_err(|error| error.to_string())
}

/// Bytes that do not compress.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut prng = argosfs::base::Prng::new(seed);
    let mut bytes = vec![0; length];
    argosfs::base::Entropy::fill(&mut prng, &mut bytes);
    bytes
}

fn sequential_write(rig: &mut Rig) -> Result<Option<f64>, String> {
    let block = noise(1, MIB);
    let write = || -> io::Result<f64> {
        let mut file = File::create(rig.mountpoint.join("large"))?;
        let start = Instant::now();
        for _ in 0..FILE_MIB {
            file.write_all(&block)?;
        }
        file.sync_all()?;
        Ok(FILE_MIB as f64 / start.elapsed().as_secs_f64())
    };
    rate(write())
}

fn sequential_read(rig: &Rig) -> io::Result<f64> {
    let mut file = File::open(rig.mountpoint.join("large"))?;
    let mut block = vec![0; MIB];
    let start = Instant::now();
    let mut total = 0;
    loop {
        match file.read(&mut block)? {
            0 => break,
            count => total += count,
        }
    }
    if total != FILE_MIB * MIB {
        return Err(io::Error::other("the file is not whole"));
    }
    Ok(FILE_MIB as f64 / start.elapsed().as_secs_f64())
}

fn sequential_read_cold(rig: &mut Rig) -> Result<Option<f64>, String> {
    if rig.cold()? { rate(sequential_read(rig)) } else { Ok(None) }
}

fn degraded_read(rig: &mut Rig) -> Result<Option<f64>, String> {
    // As the cold read found it: the random writes have left the old one in pieces.
    fs::remove_file(rig.mountpoint.join("large")).map_err(|error| error.to_string())?;
    sequential_write(rig)?;
    if rig.degrade()? { rate(sequential_read(rig)) } else { Ok(None) }
}

fn random_read(rig: &mut Rig) -> Result<Option<f64>, String> {
    if !rig.cold()? {
        return Ok(None);
    }
    let read = || -> io::Result<f64> {
        let file = File::open(rig.mountpoint.join("large"))?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random)?;
        let mut prng = argosfs::base::Prng::new(3);
        let mut block = vec![0; 4096];
        let start = Instant::now();
        let count = 4000;
        for _ in 0..count {
            file.read_exact_at(&mut block, prng.below((FILE_MIB * MIB / 4096) as u64) * 4096)?;
        }
        Ok(f64::from(count) / start.elapsed().as_secs_f64())
    };
    rate(read())
}

fn random_write(rig: &mut Rig) -> Result<Option<f64>, String> {
    let write = || -> io::Result<f64> {
        let file = OpenOptions::new().write(true).open(rig.mountpoint.join("large"))?;
        let mut prng = argosfs::base::Prng::new(4);
        let block = noise(5, 4096);
        let count = 20_000;
        let start = Instant::now();
        for _ in 0..count {
            file.write_all_at(&block, prng.below((FILE_MIB * MIB / 4096) as u64) * 4096)?;
        }
        file.sync_all()?;
        Ok(f64::from(count) / start.elapsed().as_secs_f64())
    };
    rate(write())
}

fn synchronous_writes(rig: &mut Rig) -> Result<Option<f64>, String> {
    let write = || -> io::Result<f64> {
        let mut file = File::create(rig.mountpoint.join("synced"))?;
        let block = noise(6, 4096);
        let count = if rig.peer == Peer::Null { 20_000 } else { 1500 };
        let start = Instant::now();
        for _ in 0..count {
            file.write_all(&block)?;
            file.sync_all()?;
        }
        Ok(f64::from(count) / start.elapsed().as_secs_f64())
    };
    rate(write())
}

fn create(rig: &mut Rig) -> Result<Option<f64>, String> {
    let make = || -> io::Result<f64> {
        let block = noise(7, 4096);
        let start = Instant::now();
        for directory in 0..FILES / 100 {
            let directory = rig.mountpoint.join(format!("many/{directory:03}"));
            fs::create_dir_all(&directory)?;
            for file in 0..100 {
                fs::write(directory.join(format!("file{file:02}")), &block)?;
            }
        }
        Ok(FILES as f64 / start.elapsed().as_secs_f64())
    };
    rate(make())
}

fn find(rig: &mut Rig) -> Result<Option<f64>, String> {
    fn walk(path: &Path, seen: &mut u64) -> io::Result<()> {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            *seen += 1;
            if entry.metadata()?.is_dir() {
                walk(&entry.path(), seen)?;
            }
        }
        Ok(())
    }
    if !rig.cold()? {
        return Ok(None);
    }
    let start = Instant::now();
    let mut seen = 0;
    walk(&rig.mountpoint.join("many"), &mut seen).map_err(|error| error.to_string())?;
    Ok(Some(seen as f64 / start.elapsed().as_secs_f64()))
}

fn remove(rig: &mut Rig) -> Result<Option<f64>, String> {
    let start = Instant::now();
    fs::remove_dir_all(rig.mountpoint.join("many")).map_err(|error| error.to_string())?;
    Ok(Some((FILES + FILES / 100 + 1) as f64 / start.elapsed().as_secs_f64()))
}

/// An archive of small files of several sizes, made once.
fn untar(rig: &mut Rig) -> Result<Option<f64>, String> {
    let archive = std::env::temp_dir().join("argosfs-peers.tar");
    let count = 11_000;
    if !archive.exists() {
        let tree = std::env::temp_dir().join("argosfs-peers-tree");
        let mut prng = argosfs::base::Prng::new(9);
        for file in 0..count {
            let directory = tree.join(format!("d{:03}/s{}", file / 64, file % 7));
            fs::create_dir_all(&directory).map_err(|e| e.to_string())?;
            let size = prng.below(if file % 20 == 0 { 100_000 } else { 12_000 }) as usize;
            fs::write(directory.join(format!("f{file}")), noise(file, size)).map_err(|e| e.to_string())?;
        }
        let made = Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&tree).arg(".").status();
        fs::remove_dir_all(&tree).map_err(|e| e.to_string())?;
        if !made.is_ok_and(|status| status.success()) {
            return Err("tar failed".into());
        }
    }
    let target = rig.mountpoint.join("tree");
    fs::create_dir_all(&target).map_err(|e| e.to_string())?;
    let start = Instant::now();
    let done = Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&target).stdin(Stdio::null()).status();
    if !done.is_ok_and(|status| status.success()) {
        return Err("tar failed".into());
    }
    Ok(Some(count as f64 / start.elapsed().as_secs_f64()))
}
