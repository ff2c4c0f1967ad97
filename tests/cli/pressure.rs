//! Programs that write more through mappings than the memory they may have: the kernel can free some only when the daemon has
//! taken what they wrote. Where that is permitted, the daemon shares their memory.

use std::process::{Child, Stdio};

use super::*;

const LIMIT: u64 = 48 << 20;
const FILE: usize = 80 << 20;
const PAGE: usize = 4096;
const WRITERS: usize = 2;
const ROUNDS: usize = 3;

/// A control group of our own with little memory.
struct Group(PathBuf);

impl Group {
    /// Fails where there are no such groups, or no permission to make one.
    fn new() -> std::io::Result<Group> {
        let name = format!("argosfs-test-{}", std::process::id());
        let groups = Path::new("/sys/fs/cgroup");
        let (parent, file) = match groups.join("memory/memory.limit_in_bytes").exists() {
            true => (groups.join("memory"), "memory.limit_in_bytes"),
            false => (groups.to_path_buf(), "memory.max"),
        };
        if file == "memory.max" {
            fs::write(parent.join("cgroup.subtree_control"), "+memory")?;
        }
        let group = Group(parent.join(name));
        fs::create_dir(&group.0)?;
        fs::write(group.0.join(file), LIMIT.to_string())?;
        Ok(group)
    }

    fn add(&self, process: u32) {
        fs::write(self.0.join("cgroup.procs"), process.to_string()).expect("joins the group");
    }

    /// Hands whoever is left to the group above, and removes it.
    fn remove(&self) -> std::io::Result<()> {
        let left = fs::read_to_string(self.0.join("cgroup.procs"))?;
        for process in left.lines() {
            let _ = fs::write(self.0.with_file_name("cgroup.procs"), process);
        }
        fs::remove_dir(&self.0)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let began = Instant::now();
        while self.remove().is_err() && began.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Ends when it is dropped, however the test ends.
struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn word(seed: usize, page: usize, round: usize) -> [u8; 8] {
    argosfs::base::rng::mix64((seed << 40 | page << 8 | round) as u64).to_le_bytes()
}

/// Not a test by itself: what a writer does, started by the test below and told by a line that it may begin.
#[test]
fn acts_as_a_writer() {
    let Ok(path) = std::env::var("ARGOSFS_TEST_WRITER") else { return };
    let seed = path.len();
    std::io::stdin().read_line(&mut String::new()).expect("reads");
    let file = fs::File::options().read(true).write(true).create_new(true).open(&path).expect("opens");
    file.set_len(FILE as u64).expect("grows");
    // SAFETY: nobody else changes the file while it is mapped.
    let mut map = unsafe { memmap2::MmapMut::map_mut(&file) }.expect("maps");
    for round in 0..ROUNDS {
        for page in 0..FILE / PAGE {
            if round > 0 {
                assert_eq!(map[page * PAGE..][..8], word(seed, page, round - 1), "page {page} before round {round}");
            }
            map[page * PAGE..][..8].copy_from_slice(&word(seed, page, round));
        }
    }
    map.flush().expect("syncs");
}

/// Whether the daemon can tell the kernel that freeing memory depends on it.
fn may_protect_itself() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").expect("reads");
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("capabilities");
    u64::from_str_radix(line.trim(), 16).expect("a number") >> CAP_SYS_RESOURCE & 1 == 1
}

#[test]
fn mapped_writers_with_too_little_memory_get_on() {
    let name = "mapped_writers_with_too_little_memory_get_on";
    if !can_mount(name) {
        return;
    }
    let group = match Group::new() {
        Ok(group) => group,
        Err(error) => return eprintln!("!!! {name} SKIPPED: no control group for memory can be made: {error}"),
    };
    let bench = Bench::new("pressure");
    let images: Vec<String> = (0..6).map(|at| bench.image(at)).collect();
    let mut words = vec!["mkfs", "--name", "tank", "--size", "128M"];
    words.extend(images.iter().map(String::as_str));
    bench.ok(&words);
    let mounted = bench.run(&["mount", &images[0], &bench.mnt()]);
    assert!(mounted.status.success(), "{}", text(&mounted.stderr));
    let shares = may_protect_itself();
    assert_eq!(text(&mounted.stderr).contains("CAP_SYS_RESOURCE"), !shares, "{}", text(&mounted.stderr));
    match shares {
        true => group.add(bench.daemon() as u32),
        false => {
            eprintln!("!!! {name}: the daemon stays outside of the group: without CAP_SYS_RESOURCE it may hang there")
        }
    }
    let path = |number: usize| bench.root.join(format!("mnt/writer{}", "x".repeat(number)));
    let mut writers: Vec<Writer> = (0..WRITERS)
        .map(|number| {
            let mut command = Command::new(std::env::current_exe().expect("exists"));
            command.args(["--exact", "pressure::acts_as_a_writer"]).env("ARGOSFS_TEST_WRITER", path(number));
            Writer(
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("starts"),
            )
        })
        .collect();
    for Writer(child) in &mut writers {
        group.add(child.id());
        // It begins when its standard input ends.
        drop(child.stdin.take());
    }
    let began = Instant::now();
    for (number, Writer(child)) in writers.iter_mut().enumerate() {
        let ended = loop {
            if let Some(ended) = child.try_wait().expect("waits") {
                break ended;
            }
            if began.elapsed() > Duration::from_secs(600) {
                let stack = fs::read_to_string(format!("/proc/{}/stack", child.id()));
                panic!("writer {number} hangs: {stack:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(ended.success(), "writer {number}: {ended}");
    }
    bench.ok(&["umount", &bench.mnt()]);
    bench.ok(&["mount", &images[0], &bench.mnt()]);
    for number in 0..WRITERS {
        let bytes = fs::read(path(number)).expect("reads");
        let seed = path(number).to_str().expect("UTF-8").len();
        let right = |(page, bytes): (usize, &[u8])| bytes[..8] == word(seed, page, ROUNDS - 1);
        assert!(bytes.len() == FILE && bytes.chunks(PAGE).enumerate().all(right), "writer {number}");
    }
    bench.ok(&["umount", &bench.mnt()]);
    assert!(bench.ok(&["fsck", "--data", &images[0]]).contains("clean"));
}
