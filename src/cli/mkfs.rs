//! `argosfs mkfs`.

use std::path::PathBuf;
use std::sync::Arc;

use super::output::Output;
use super::target::open_options;
use crate::base::{BLOCK_SIZE, Bytes, Clock, Entropy, Error, Result, SystemClock, SystemEntropy};
use crate::check;
use crate::control::open::absolute;
use crate::control::protocol::Outcome;
use crate::device::file::{self, PathKind};
use crate::device::{Device, engine};
use crate::format::label::{DEBUG_FAULTS, DefaultGeometry, Features};
use crate::fs::{Fs, RootOwner};
use crate::pool::{FormatOptions, Pool};
use crate::store::Store;

#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Data shards of a stripe; by default the number of devices decides.
    #[arg(long, value_name = "K", requires = "m")]
    k: Option<u8>,
    /// Parity shards of a stripe: as many devices may be lost.
    #[arg(long, value_name = "M", requires = "k")]
    m: Option<u8>,
    /// The pool's name.
    #[arg(long, default_value = "argosfs")]
    name: String,
    /// Size of image files that are made, and of the file in a directory: 64M, 2G, 1T.
    #[arg(long, value_parser = parse_size)]
    size: Option<Bytes>,
    /// Overwrite whatever the devices hold.
    #[arg(long)]
    force: bool,
    /// Allow a pool that loses data with the first device it loses.
    #[arg(long, conflicts_with_all = ["k", "m"])]
    no_redundancy: bool,
    /// Let `argosfs debug inject` make the devices fail; slower.
    #[arg(long, hide = true)]
    debug_faults: bool,
    /// Block devices, image files, or directories.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
}

pub(super) fn parse_size(text: &str) -> Result<Bytes, String> {
    Bytes::parse(text).filter(|size| size.0 > 0).ok_or_else(|| "a size looks like 64M, 2G or 1T".to_owned())
}

/// Part of a filesystem's free space that a directory's file may take when no size is given, in percent.
const DIRECTORY_SHARE: u64 = 95;

/// Makes the pool and says what it is good for.
pub fn run(arguments: &Arguments, output: Output) -> Result<u8> {
    let (k, m) = geometry(arguments)?;
    let paths = arguments.paths.iter().map(|path| absolute(path)).collect::<Result<Vec<_>>>()?;
    let sizes = sizes(&paths, arguments)?;
    let options = open_options(false);
    let mut format = FormatOptions {
        name: arguments.name.clone(),
        geometry: DefaultGeometry { k, m, shard_blocks: shard_blocks(0) },
        force: arguments.force,
        created: SystemClock.now().seconds,
        features: Features { compat: if arguments.debug_faults { DEBUG_FAULTS } else { 0 }, ..Features::default() },
    };
    format.check(paths.len())?;
    let mut made = Made(Vec::new());
    let devices = open_all(&paths, &sizes, arguments.force, &mut made)?;
    let smallest = devices.iter().map(|device| device.size()).min().unwrap_or(0);
    format.geometry.shard_blocks = shard_blocks(smallest);
    let (engine, notes) = engine::select(options.engine);
    notes.iter().for_each(|note| output.note(note));
    let pool = Arc::new(Pool::format(&devices, &format, engine, Box::new(SystemEntropy))?);
    made.0.clear();
    pool.take_notes().iter().for_each(|note| output.note(note));
    let store = Store::format(Arc::clone(&pool), options.clock, SystemEntropy.next_u64())?;
    let owner = RootOwner {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        ..RootOwner::default()
    };
    store.meta().transact(|tx| Fs::format(tx, &mut SystemEntropy, owner))?;
    // So that there is one to recover from at any time.
    check::archive(&store, pool.uuid(), format.created, &|| true)?;
    let space = store.space();
    store.close()?;
    devices.iter().flat_map(|device| device.notes()).for_each(|note| output.note(&note));

    let uuid = pool.uuid().to_string();
    let (name, count, usable) = (&arguments.name, devices.len(), Bytes(space.available));
    let may = match m {
        0 => "no device may be lost".to_owned(),
        1 => "any 1 device may be lost".to_owned(),
        m => format!("any {m} devices may be lost"),
    };
    let text = format!("{name}: {k}+{m} over {count} devices, {} bytes ({usable}) usable, {may}\n  {uuid}", usable.0);
    let answer = serde_json::json!({
        "name": name, "uuid": uuid, "k": k, "m": m, "devices": count, "usable": usable.0, "can_lose": m,
    });
    output.answer(&Outcome { level: 0, answer, text })?;
    Ok(0)
}

/// The geometry asked for, or the one that suits the number of devices.
fn geometry(arguments: &Arguments) -> Result<(u8, u8)> {
    let count = arguments.paths.len();
    if let (Some(k), Some(m)) = (arguments.k, arguments.m) {
        if m == 0 {
            return Err(Error::Usage("with --m 0 the first lost device loses data: say --no-redundancy".to_owned()));
        }
        return Ok((k, m));
    }
    if arguments.no_redundancy {
        return Ok((count.min(8) as u8, 0));
    }
    default_geometry(count).ok_or_else(|| {
        Error::Usage("one device has no redundancy: give more devices, or say --no-redundancy".to_owned())
    })
}

/// k and m for so many devices.
fn default_geometry(devices: usize) -> Option<(u8, u8)> {
    Some(match devices {
        0 | 1 => return None,
        2 => (1, 1),
        3 => (2, 1),
        4 => (2, 2),
        5 => (3, 2),
        6..=11 => (4, 2),
        _ => (8, 3),
    })
}

/// Payload blocks of a shard: 512 KiB, less on devices so small that a few stripes would fill them.
fn shard_blocks(smallest: u64) -> u32 {
    let wanted = (smallest / BLOCK_SIZE / 1024).clamp(4, 128);
    1 << wanted.ilog2()
}

/// The size each path is to have when it is made here; `None` keeps what is there. Checked before anything is touched.
fn sizes(paths: &[PathBuf], arguments: &Arguments) -> Result<Vec<Option<Bytes>>> {
    paths
        .iter()
        .map(|path| {
            let shown = path.display();
            Ok(match file::probe(path)? {
                PathKind::Block { .. } => None,
                PathKind::Missing { .. } | PathKind::Image { size: Bytes(0), .. } => {
                    Some(arguments.size.ok_or_else(|| {
                        Error::Usage(format!(
                            "{shown} does not exist: say how large an image to make, as in --size 10G"
                        ))
                    })?)
                }
                PathKind::Image { .. } => arguments.size.filter(|_| arguments.force),
                PathKind::Directory { size: Some(_), .. } if !arguments.force => None,
                PathKind::Directory { size, free } => Some(arguments.size.unwrap_or_else(|| {
                    let there = size.unwrap_or_default().0;
                    Bytes((free.0.saturating_add(there) / 100 * DIRECTORY_SHARE) / BLOCK_SIZE * BLOCK_SIZE)
                })),
            })
        })
        .collect()
}

/// Files that were made for the pool: taken away again when there will be none.
struct Made(Vec<PathBuf>);

impl Drop for Made {
    fn drop(&mut self) {
        self.0.iter().for_each(|path| drop(std::fs::remove_file(path)));
    }
}

/// Opens all devices, and makes those that are to be made.
fn open_all(paths: &[PathBuf], sizes: &[Option<Bytes>], force: bool, made: &mut Made) -> Result<Vec<Arc<dyn Device>>> {
    // Nothing is emptied before it is known that nobody has any of them.
    for path in paths.iter().filter(|path| force && path.exists()) {
        if let Err(busy @ Error::Busy(_)) = file::open(path, &file::OpenOptions::default()) {
            return Err(busy);
        }
    }
    let mut devices = Vec::new();
    for (path, size) in paths.iter().zip(sizes) {
        let existed = path.exists();
        let options =
            file::OpenOptions { create_size: *size, recreate: force && size.is_some(), ..file::OpenOptions::default() };
        devices.push(file::open(path, &options)?);
        if !existed {
            made.0.push(path.clone());
        }
    }
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_devices_decides_the_geometry() {
        let wanted =
            [(2, (1, 1)), (3, (2, 1)), (4, (2, 2)), (5, (3, 2)), (6, (4, 2)), (11, (4, 2)), (12, (8, 3)), (40, (8, 3))];
        for (devices, geometry) in wanted {
            assert_eq!(default_geometry(devices), Some(geometry), "{devices} devices");
            assert!(usize::from(geometry.0 + geometry.1) <= devices);
        }
        assert_eq!(default_geometry(1), None);
    }

    #[test]
    fn shards_suit_the_devices() {
        assert_eq!(shard_blocks(1 << 40), 128);
        assert_eq!(shard_blocks(512 << 20), 128);
        assert_eq!(shard_blocks(64 << 20), 16);
        assert_eq!(shard_blocks(8 << 20), 4);
    }
}
