use super::*;
use crate::base::{Bytes, Prng};
use crate::device::EngineChoice;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A directory that goes away with the test.
pub(in crate::device) struct TempDir(PathBuf);

impl TempDir {
    pub(in crate::device) fn new(name: &str) -> TempDir {
        let path = std::env::temp_dir().join(format!("argosfs-device-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        TempDir(path)
    }

    pub(in crate::device) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn image(dir: &TempDir, size: u64) -> PathBuf {
    let path = dir.path().join("image");
    open(&path, &create(size)).unwrap();
    path
}

fn create(size: u64) -> OpenOptions {
    OpenOptions { create_size: Some(Bytes(size)), ..OpenOptions::default() }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    crate::base::Entropy::fill(&mut Prng::new(seed), &mut bytes);
    bytes
}

#[test]
fn images_and_directories_are_made_once_and_keep_their_size() {
    let dir = TempDir::new("make");
    let path = dir.path().join("image");
    let missing = open(&path, &OpenOptions::default()).unwrap_err();
    assert!(matches!(missing, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound));
    assert!(matches!(probe(&path).unwrap(), PathKind::Missing { free } if free.0 > 0));
    let device = open(&path, &create((8 << 20) + 5)).unwrap();
    assert_eq!((device.size(), device.name()), (8 << 20, path.to_str().unwrap()));
    drop(device);
    assert!(matches!(probe(&path).unwrap(), PathKind::Image { size: Bytes(size), .. } if size == 8 << 20));
    let kept = open(&path, &create(16 << 20)).unwrap();
    assert_eq!((kept.size(), kept.notes().len(), kept.notes().len()), (8 << 20, 1, 0));
    kept.write_at(0, &[&[1; 4096]]).unwrap();
    drop(kept);
    let again = open(&path, &OpenOptions { recreate: true, ..create(16 << 20) }).unwrap();
    let mut block = [9; 4096];
    again.read_at(0, &mut block).unwrap();
    assert_eq!((again.size(), block), (16 << 20, [0; 4096]));

    let member = dir.path().join("member");
    std::fs::create_dir(&member).unwrap();
    let refused = open(&member, &OpenOptions::default()).unwrap_err().to_string();
    assert!(refused.contains(DIRECTORY_FILE), "{refused}");
    let device = open(&member, &create(1 << 20)).unwrap();
    assert_eq!((device.size(), device.name()), (1 << 20, member.to_str().unwrap()));
    assert!(member.join(DIRECTORY_FILE).is_file());
    assert!(matches!(probe(&member).unwrap(), PathKind::Directory { size: Some(Bytes(1_048_576)), .. }));
    assert!(matches!(open(Path::new("/dev/null"), &create(1 << 20)), Err(Error::Usage(_))));
}

#[test]
fn a_second_opener_is_refused_and_told_what_to_do() {
    let dir = TempDir::new("lock");
    let path = image(&dir, 1 << 20);
    let reader = OpenOptions { read_only: true, ..OpenOptions::default() };
    let first = open(&path, &OpenOptions::default()).unwrap();
    for options in [&OpenOptions::default(), &reader, &create(1 << 20)] {
        let Error::Busy(text) = open(&path, options).unwrap_err() else { panic!("not Busy") };
        assert!(text.contains(path.to_str().unwrap()) && text.contains("unmount"), "{text}");
    }
    // Another name of the same file is the same file.
    std::fs::hard_link(&path, dir.path().join("other")).unwrap();
    assert!(matches!(open(&dir.path().join("other"), &OpenOptions::default()), Err(Error::Busy(_))));
    drop(first);
    let readers = [open(&path, &reader).unwrap(), open(&path, &reader).unwrap()];
    assert!(matches!(open(&path, &OpenOptions::default()), Err(Error::Busy(_))));
    drop(readers);
    open(&path, &OpenOptions::default()).unwrap();
}

#[test]
fn any_memory_can_be_read_into_and_written_from() {
    let dir = TempDir::new("memory");
    for engine in [EngineChoice::Auto, EngineChoice::Buffered] {
        let path = image(&dir, 8 << 20);
        let device = open(&path, &OpenOptions { engine, ..OpenOptions::default() }).unwrap();
        let direct = device.raw().unwrap().direct;
        assert_eq!(direct, engine.direct() && device.notes().is_empty());
        let mut prng = Prng::new(1);
        let mut model = vec![0; 8 << 20];
        for step in 0..60 {
            let (len, skew) = (prng.below(640) as usize * 4096, prng.below(3) as usize * 7);
            let offset = prng.below(2048 - len as u64 / 4096) as usize * 4096;
            let bytes = noise(step, len + skew);
            let bytes = &bytes[skew..];
            model[offset..offset + len].copy_from_slice(bytes);
            let mut cuts: Vec<usize> = (0..prng.below(4)).map(|_| prng.below(len as u64 + 1) as usize).collect();
            cuts.extend([0, len]);
            cuts.sort_unstable();
            let bufs: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            device.write_at(offset as u64, &bufs).unwrap();
            let mut back = vec![0; len + skew];
            device.read_at(offset as u64, &mut back[skew..]).unwrap();
            assert!(&back[skew..] == bytes, "step {step}");
        }
        let blocks: Vec<&[u8]> = model.chunks(4096).collect();
        device.write_at(0, &blocks).unwrap();
        device.flush().unwrap();
        let mut back = vec![0; 8 << 20];
        device.read_at(0, &mut back).unwrap();
        assert!(back == model);
        assert_eq!((device.stalled_ns(), device.raw().unwrap().direct), (None, direct));
        drop(device);
        assert!(std::fs::read(&path).unwrap() == model);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn requests_outside_the_device_change_nothing() {
    let dir = TempDir::new("bounds");
    let path = image(&dir, 1 << 20);
    let device = open(&path, &OpenOptions::default()).unwrap();
    for (offset, len) in [(1 << 20, 4096), ((1 << 20) - 4096, 8192), (512, 4096), (0, 100), (u64::MAX - 4095, 8192)] {
        assert!(device.write_at(offset, &[&vec![1; len]]).is_err(), "write {offset}+{len}");
        assert!(device.read_at(offset, &mut vec![0; len]).is_err(), "read {offset}+{len}");
        assert!(device.discard(offset, len as u64).is_err(), "discard {offset}+{len}");
    }
    device.write_at(0, &[]).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), vec![0; 1 << 20]);
}

#[test]
fn a_file_that_was_cut_short_is_refused_or_gives_errors_but_never_zeros() {
    let dir = TempDir::new("short");
    let path = image(&dir, 1 << 20);
    let device = open(&path, &OpenOptions::default()).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(64 << 10).unwrap();
    device.read_at(0, &mut [0; 4096]).unwrap();
    let error = device.read_at(60 << 10, &mut vec![0; 8192]).unwrap_err().to_string();
    assert!(error.contains("cut short"), "{error}");
    drop(device);
    let expected = OpenOptions { expected_size: Some(Bytes(1 << 20)), ..OpenOptions::default() };
    let Error::Unavailable(text) = open(&path, &expected).unwrap_err() else { panic!("not Unavailable") };
    assert!(text.contains("65536") && text.contains("1048576"), "{text}");
}

#[test]
fn discards_punch_holes() {
    let dir = TempDir::new("discard");
    let path = image(&dir, 4 << 20);
    let device = open(&path, &OpenOptions::default()).unwrap();
    device.write_at(0, &[&noise(1, 2 << 20)]).unwrap();
    device.flush().unwrap();
    let blocks = || std::fs::metadata(&path).unwrap().blocks();
    let before = blocks();
    device.discard(4096, 1 << 20).unwrap();
    let mut back = vec![1; 1 << 20];
    device.read_at(4096, &mut back).unwrap();
    assert!(blocks() + 2000 < before && back.iter().all(|byte| *byte == 0), "{} then {}", before, blocks());
    device.read_at(0, &mut back[..4096]).unwrap();
    assert!(back[..4096] == noise(1, 4096)[..]);
}

#[test]
fn read_only_devices_refuse_writes() {
    let dir = TempDir::new("readonly");
    let path = image(&dir, 1 << 20);
    let device = open(&path, &OpenOptions { read_only: true, ..OpenOptions::default() }).unwrap();
    assert!(matches!(device.write_at(0, &[&[1; 4096]]), Err(Error::ReadOnly)));
    assert!(matches!(device.discard(0, 4096), Err(Error::ReadOnly)));
    device.read_at(0, &mut [0; 4096]).unwrap();
    device.flush().unwrap();
    let missing = OpenOptions { read_only: true, ..create(1 << 20) };
    assert!(open(&dir.path().join("none"), &missing).is_err() && !dir.path().join("none").exists());
}

#[test]
fn a_refusal_of_o_direct_in_the_middle_falls_back_and_says_so_once() {
    let dir = TempDir::new("fallback");
    let path = image(&dir, 1 << 20);
    let mut device = open::open_file(&path, &OpenOptions::default()).unwrap();
    if !device.direct.load(Ordering::Relaxed) || rustix::fs::statfs(&path).unwrap().f_type == 0x0102_1994 {
        eprintln!("SKIPPED: the temporary directory has no O_DIRECT that could be refused");
        return;
    }
    // Odd addresses now pass for aligned, and the kernel refuses them.
    device.alignment = 1;
    let bytes = noise(1, 8193);
    device.write_at(4096, &[&bytes[1..]]).unwrap();
    let mut back = vec![0; 8193];
    device.read_at(4096, &mut back[1..]).unwrap();
    assert!(back[1..] == bytes[1..]);
    assert!(!device.direct.load(Ordering::Relaxed));
    let notes = device.notes();
    assert!(notes.len() == 1 && notes[0].contains("O_DIRECT") && device.notes().is_empty(), "{notes:?}");
}

#[test]
fn after_a_failed_flush_none_succeeds() {
    let dir = TempDir::new("flush");
    let device = open::open_file(&image(&dir, 1 << 20), &OpenOptions::default()).unwrap();
    device.flush().unwrap();
    device.flush_failed.store(true, Ordering::Release);
    assert!(device.flush().unwrap_err().to_string().contains("earlier flush"));
    assert!(device.raw().is_none(), "an engine could bypass the refusal");
}

#[test]
fn images_on_one_filesystem_share_a_domain() {
    let dir = TempDir::new("domains");
    let [one, two] = ["one", "two"].map(|name| open(&dir.path().join(name), &create(1 << 20)).unwrap());
    assert!(one.domain_hint().is_some() && one.domain_hint() == two.domain_hint());
}

/// A loop device over a file; detached when dropped.
pub(in crate::device) struct LoopDevice(String);

impl LoopDevice {
    /// `None`, said loudly, where loop devices cannot be made.
    pub(in crate::device) fn attach(file: &Path) -> Option<LoopDevice> {
        let made = std::process::Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        match made {
            Ok(output) if output.status.success() => {
                Some(LoopDevice(String::from_utf8(output.stdout).unwrap().trim().to_owned()))
            }
            why => {
                eprintln!("SKIPPED: a loop device is needed, which takes root and losetup: {why:?}");
                None
            }
        }
    }
}

impl LoopDevice {
    pub(in crate::device) fn path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn block_devices_are_exclusive_sized_and_discardable() {
    let dir = TempDir::new("loop");
    let path = image(&dir, 8 << 20);
    let Some(device_path) = LoopDevice::attach(&path) else { return };
    let path_of = device_path.path();
    assert_eq!(probe(path_of).unwrap(), PathKind::Block { size: Bytes(8 << 20) });
    let device = open(path_of, &OpenOptions::default()).unwrap();
    assert_eq!(device.size(), 8 << 20);
    let Error::Busy(text) = open(path_of, &OpenOptions::default()).unwrap_err() else { panic!("not Busy") };
    assert!(text.contains(&device_path.0), "{text}");
    let bytes = noise(1, 1 << 20);
    device.write_at(4 << 20, &[&bytes[..5000], &bytes[5000..]]).unwrap();
    device.flush().unwrap();
    let mut back = vec![0; 1 << 20];
    device.read_at(4 << 20, &mut back).unwrap();
    assert!(back == bytes);
    assert!(std::fs::read(&path).unwrap()[4 << 20..5 << 20] == bytes);
    device.discard(4 << 20, 1 << 20).unwrap();
    device.read_at(4 << 20, &mut back).unwrap();
    assert!(back.iter().all(|byte| *byte == 0), "a loop device punches holes");
    assert!(device.write_at(8 << 20, &[&[0; 4096]]).is_err());
    let rdev = std::fs::metadata(path_of).unwrap().rdev();
    assert_eq!(device.domain_hint(), Some(rdev), "a loop device is its own domain");
    drop(device);
    open(path_of, &OpenOptions { read_only: true, ..OpenOptions::default() }).unwrap();
}
