//! Making, mounting and removing the contenders.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Bytes of each of six devices; the single device of ext4 is as large as four of them.
const DEVICE_BYTES: u64 = 2 << 30;

/// A contender.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Ext4,
    Btrfs,
    Null,
    Argos,
}

/// A mounted contender; unmounted and removed when dropped.
pub struct Rig {
    pub peer: Peer,
    pub mountpoint: PathBuf,
    directory: PathBuf,
    loops: Vec<PathBuf>,
    child: Option<Child>,
    mounted: bool,
}

impl Peer {
    pub const ALL: [Peer; 4] = [Peer::Ext4, Peer::Btrfs, Peer::Null, Peer::Argos];

    pub fn name(self) -> &'static str {
        match self {
            Peer::Ext4 => "ext4",
            Peer::Btrfs => "btrfs",
            Peer::Null => "null",
            Peer::Argos => "argosfs",
        }
    }

    /// Makes the devices and the filesystem below `directory` and mounts it.
    pub fn start(self, directory: &Path) -> Result<Rig, String> {
        let directory = directory.join(self.name());
        let mountpoint = directory.join("mnt");
        std::fs::create_dir_all(&mountpoint).map_err(|e| format!("{}: {e}", mountpoint.display()))?;
        let mut rig = Rig { peer: self, mountpoint, directory, loops: Vec::new(), child: None, mounted: false };
        let (count, bytes) = match self {
            Peer::Ext4 => (1, 4 * DEVICE_BYTES),
            Peer::Btrfs | Peer::Argos => (6, DEVICE_BYTES),
            Peer::Null => (0, 0),
        };
        for at in 0..count {
            rig.add_loop(at, bytes)?;
        }
        let devices: Vec<String> = rig.loops.iter().map(|path| path.display().to_string()).collect();
        let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
        match self {
            Peer::Ext4 => run(Command::new("mkfs.ext4").arg("-q").args(&devices))?,
            Peer::Btrfs => {
                run(Command::new("mkfs.btrfs").args(["-q", "-f", "-d", "raid6", "-m", "raid1c3"]).args(&devices))?
            }
            Peer::Argos => run(argosfs().args(["mkfs", "--name", "peers", "--force"]).args(&devices))?,
            Peer::Null => {}
        }
        rig.mount(&[])?;
        Ok(rig)
    }
}

impl Rig {
    fn add_loop(&mut self, at: usize, bytes: u64) -> Result<(), String> {
        let image = self.directory.join(format!("disk{at}"));
        let file = std::fs::File::create(&image).map_err(|e| e.to_string())?;
        file.set_len(bytes).map_err(|e| e.to_string())?;
        let made = Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(&image).output();
        let made = made.map_err(|e| format!("losetup: {e}"))?;
        if !made.status.success() {
            return Err(format!("losetup: {}", String::from_utf8_lossy(&made.stderr)));
        }
        self.loops.push(PathBuf::from(String::from_utf8_lossy(&made.stdout).trim()));
        Ok(())
    }

    fn mount(&mut self, options: &[&str]) -> Result<(), String> {
        match self.peer {
            Peer::Ext4 | Peer::Btrfs => {
                run(Command::new("mount").args(options).arg(&self.loops[0]).arg(&self.mountpoint))?
            }
            Peer::Argos => {
                run(argosfs().arg("mount").args(options).arg(&self.loops[0]).arg(&self.mountpoint))?;
            }
            Peer::Null => {
                let example = build_null()?;
                let child = Command::new(example).arg(&self.mountpoint).stderr(Stdio::null()).spawn();
                self.child = Some(child.map_err(|e| e.to_string())?);
                let until = Instant::now() + Duration::from_secs(10);
                while !is_mountpoint(&self.mountpoint) {
                    if Instant::now() > until {
                        return Err("nullfs did not mount".into());
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<(), String> {
        if !std::mem::take(&mut self.mounted) {
            return Ok(());
        }
        match self.peer {
            Peer::Argos => run(argosfs().arg("umount").arg(&self.mountpoint)),
            _ => {
                run(Command::new("umount").arg(&self.mountpoint))?;
                if let Some(mut child) = self.child.take() {
                    child.wait().map_err(|e| e.to_string())?;
                }
                Ok(())
            }
        }
    }

    /// Unmounts, drops the kernel's caches and mounts again. `false` where nothing would be left (null).
    pub fn cold(&mut self) -> Result<bool, String> {
        if self.peer == Peer::Null {
            return Ok(false);
        }
        self.unmount()?;
        drop_caches();
        self.mount(&[])?;
        Ok(true)
    }

    /// Mounts again after two devices were taken away. `false` where that is not possible.
    pub fn degrade(&mut self) -> Result<bool, String> {
        if !matches!(self.peer, Peer::Argos | Peer::Btrfs) {
            return Ok(false);
        }
        self.unmount()?;
        for at in [4, 1] {
            let device = self.loops.remove(at);
            if self.peer == Peer::Btrfs {
                run(Command::new("btrfs").args(["device", "scan", "--forget"]).arg(&device))?;
            }
            run(Command::new("losetup").arg("--detach").arg(&device))?;
        }
        drop_caches();
        self.mount(&["-o", "degraded"])?;
        Ok(true)
    }

    /// Removes everything again.
    pub fn stop(mut self) -> Result<(), String> {
        self.unmount()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.unmount();
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        for device in &self.loops {
            let _ = Command::new("losetup").arg("--detach").arg(device).status();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn argosfs() -> Command {
    Command::new(env!("CARGO_BIN_EXE_argosfs"))
}

/// Builds the null filesystem, next to this program, and says where it is.
fn build_null() -> Result<PathBuf, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let target = program.ancestors().nth(3).ok_or("the benchmark is not in a target directory")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = ["build", "--quiet", "--locked", "--release", "--example", "nullfs", "--target-dir"];
    run(Command::new(cargo).args(build).arg(target))?;
    Ok(target.join("release/examples/nullfs"))
}

fn drop_caches() {
    let _ = Command::new("sync").status();
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
}

fn is_mountpoint(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1) == path.to_str())
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}
