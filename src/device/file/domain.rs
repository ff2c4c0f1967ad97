//! Which physical thing a file rests on, as far as `/sys` tells.

use std::path::{Path, PathBuf};

/// The number of the disk behind block device `dev` (`st_dev` or `st_rdev`): the whole disk for a partition, the only
/// device below for a mapped one (LUKS, linear LVM). Loop devices and whatever `/sys` does not know stay as they are.
pub(super) fn disk_of(dev: u64) -> u64 {
    resolve(Path::new("/sys/dev/block"), dev)
}

fn resolve(sys: &Path, mut dev: u64) -> u64 {
    // Stacks are a few layers deep; the bound only guards against a loop in what /sys says.
    for _ in 0..16 {
        let entry = sys.join(format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev)));
        let Ok(entry) = entry.canonicalize() else { return dev };
        let below = if entry.join("partition").exists() {
            entry.parent().and_then(number)
        } else {
            only_entry(&entry.join("slaves")).and_then(|slave| number(&slave))
        };
        match below {
            Some(below) if below != dev => dev = below,
            _ => return dev,
        }
    }
    dev
}

/// The one entry of a directory, if it has exactly one.
fn only_entry(dir: &Path) -> Option<PathBuf> {
    let mut entries = std::fs::read_dir(dir).ok()?;
    let first = entries.next()?.ok()?.path();
    entries.next().is_none().then_some(first)
}

/// The device number in a `/sys` block directory's `dev` file: `8:1`.
fn number(dir: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(dir.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};
    use std::os::unix::fs::symlink;

    #[test]
    fn partitions_and_single_mappings_resolve_to_their_disk() {
        let root = crate::device::file::tests::TempDir::new("domain");
        let (sys, real) = (root.path().join("dev"), root.path().join("devices"));
        create_dir_all(&sys).unwrap();
        let disk = |at: &str, dev: &str| {
            create_dir_all(real.join(at).join("slaves")).unwrap();
            write(real.join(at).join("dev"), format!("{dev}\n")).unwrap();
            symlink(real.join(at), sys.join(dev)).unwrap();
        };
        disk("sda", "8:0");
        disk("sda/sda1", "8:1");
        write(real.join("sda/sda1/partition"), "1").unwrap();
        disk("sdb", "8:16");
        disk("dm-0", "253:0");
        symlink(real.join("sda/sda1"), real.join("dm-0/slaves/sda1")).unwrap();
        disk("md0", "9:0");
        symlink(real.join("sda"), real.join("md0/slaves/sda")).unwrap();
        symlink(real.join("sdb"), real.join("md0/slaves/sdb")).unwrap();
        disk("loop0", "7:0");
        let at = |major, minor| resolve(&sys, rustix::fs::makedev(major, minor));
        let is = rustix::fs::makedev;
        assert_eq!([at(8, 0), at(8, 1), at(253, 0)], [is(8, 0); 3]);
        assert_eq!([at(9, 0), at(7, 0), at(0, 42)], [is(9, 0), is(7, 0), is(0, 42)]);
        // A mapping that rests on itself is no reason to hang.
        symlink(real.join("dm-1"), real.join("dm-2-below")).unwrap();
        disk("dm-1", "253:1");
        disk("dm-2", "253:2");
        symlink(real.join("dm-2"), real.join("dm-1/slaves/dm-2")).unwrap();
        symlink(real.join("dm-1"), real.join("dm-2/slaves/dm-1")).unwrap();
        assert!([is(253, 1), is(253, 2)].contains(&at(253, 1)));
    }
}
