//! `argosfs demo`: the whole life of a pool in one directory, by the same commands a user would give.

mod namespace;
mod tree;

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::output::{Output, print};
use crate::base::{Bytes, Error, Prng, Result};
use crate::control::open::absolute;
use crate::control::protocol::Outcome;
use tree::{Digests, Tree};

#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// A directory to do it in, empty or not there yet; takes about 2 GiB while it runs.
    directory: PathBuf,
    /// Leave the pool mounted at the end, and its images in place.
    #[arg(long)]
    keep: bool,
}

/// Devices of the pool, and which of them are destroyed.
const DEVICES: usize = 6;
const OVERWRITTEN: usize = 1;
const TRUNCATED: usize = 4;
/// Size of each image.
const IMAGE: Bytes = Bytes(320 << 20);

/// One measured step.
struct Step {
    what: String,
    took: Duration,
    bytes: u64,
    files: u64,
}

impl Step {
    fn text(&self) -> String {
        let seconds = self.took.as_secs_f64().max(1e-6);
        let mut text = format!("{:<44} {seconds:>7.2} s", self.what);
        if self.bytes > 0 {
            text.push_str(&format!("  {:>7.1} MiB/s", self.bytes as f64 / seconds / 1048576.0));
        }
        if self.files > 0 {
            text.push_str(&format!("  {:>7.0} files/s", self.files as f64 / seconds));
        }
        text
    }
}

/// Does it all. An error says which step did not hold what it promises.
pub fn run(arguments: &Arguments, output: Output) -> Result<u8> {
    if !Path::new("/dev/fuse").exists() {
        return Err(Error::Unavailable(
            "/dev/fuse is missing, so nothing can be mounted: load the kernel's fuse module (modprobe fuse)".to_owned(),
        ));
    }
    let directory = absolute(&arguments.directory)?;
    let made = prepare(&directory)?;
    let isolated = namespace::enter_if_needed(&directory)?;
    let mut demo = Demo { directory, output, steps: Vec::new(), mounted: false, isolated };
    let result = demo.play();
    if let Err(error) = &result {
        demo.say(&format!("\nFAILED: {error}"));
    }
    if demo.mounted && (!arguments.keep || result.is_err()) {
        // After a failure the images stay for whoever looks into it.
        let _ = demo.argosfs(&["umount", &demo.mountpoint()]);
        let _ = demo.argosfs_quietly(&["umount", "--lazy", &demo.mountpoint()]);
    }
    result?;
    if !arguments.keep {
        demo.clean_up(made);
    }
    demo.report(arguments.keep)?;
    Ok(0)
}

/// Makes the directory; says whether it was made.
fn prepare(directory: &Path) -> Result<bool> {
    let failed = |operation| move |error| Error::io(directory.display().to_string(), operation, error);
    match fs::read_dir(directory).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(false),
        Ok(false) => Err(Error::Usage(format!("{} is not empty: name a new directory", directory.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            fs::create_dir_all(directory).map_err(failed("create"))?;
            Ok(true)
        }
        Err(error) => Err(failed("read")(error)),
    }
}

struct Demo {
    directory: PathBuf,
    output: Output,
    steps: Vec<Step>,
    mounted: bool,
    /// Runs in namespaces of its own, where nobody else sees the mount.
    isolated: bool,
}

impl Demo {
    fn play(&mut self) -> Result<()> {
        let images: Vec<String> = (0..DEVICES).map(|at| self.path(&format!("disk{at}.img"))).collect();
        let size = format!("{}M", IMAGE.0 >> 20);
        let mut mkfs = vec!["mkfs", "--name", "demo", "--size", &size];
        mkfs.extend(images.iter().map(String::as_str));
        self.argosfs(&mkfs)?;
        let mountpoint = self.mountpoint();
        fs::create_dir(&mountpoint).map_err(|error| Error::io(&*mountpoint, "create", error))?;
        self.argosfs(&["mount", &images[0], &mountpoint])?;
        self.mounted = true;

        let tree = Tree::find(&self.directory)?;
        self.say(&format!("# copy in {} files and directories, {}", tree.len(), Bytes(tree.bytes())));
        let target = Path::new(&mountpoint).join("tree");
        let began = Instant::now();
        let written = tree.copy(&target)?;
        self.argosfs(&["sync", &mountpoint])?;
        self.step("copied in and made durable", began, &written);

        self.say("# destroy two of the six devices under the mounted pool");
        self.say(&format!("# overwrite {} with noise, truncate {} to nothing", images[OVERWRITTEN], images[TRUNCATED]));
        overwrite(Path::new(&images[OVERWRITTEN]))?;
        truncate(Path::new(&images[TRUNCATED]))?;
        self.read_back("read back with two devices destroyed", &target, &written)?;
        self.show(&["status", &mountpoint])?;

        for (old, new) in [(OVERWRITTEN, "new1.img"), (TRUNCATED, "new2.img")] {
            let began = Instant::now();
            self.argosfs(&["device", "replace", &images[old], &self.path(new), "--pool", &mountpoint])?;
            self.steps.push(Step { what: format!("replaced device {old}"), took: began.elapsed(), bytes: 0, files: 0 });
        }
        let began = Instant::now();
        self.argosfs(&["rebuild", &mountpoint])?;
        self.steps.push(Step { what: "rebuilt".to_owned(), took: began.elapsed(), bytes: 0, files: 0 });
        self.argosfs(&["status", &mountpoint])?;
        self.read_back("read back with fresh devices", &target, &written)?;
        let began = Instant::now();
        self.argosfs(&["fsck", "--data", &mountpoint])?;
        self.steps.push(Step { what: "checked every shard".to_owned(), took: began.elapsed(), bytes: 0, files: 0 });
        Ok(())
    }

    fn read_back(&mut self, what: &str, target: &Path, written: &Digests) -> Result<()> {
        drop_caches(target);
        let began = Instant::now();
        let read = tree::read(target)?;
        self.step(what, began, written);
        written.compare(&read)?;
        self.say(&format!("# {what}: all {} entries are the same, digest {}", written.len(), written.summary()));
        Ok(())
    }

    fn step(&mut self, what: &str, began: Instant, digests: &Digests) {
        let (bytes, files) = (digests.bytes(), digests.len() as u64);
        self.steps.push(Step { what: what.to_owned(), took: began.elapsed(), bytes, files });
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }

    fn mountpoint(&self) -> String {
        self.path("mnt")
    }

    fn say(&self, text: &str) {
        if self.output.json {
            return self.output.note(text);
        }
        let _ = print(format!("{text}\n").as_bytes());
    }

    /// Runs one of our own commands, shown as a user would give it.
    fn argosfs(&self, words: &[&str]) -> Result<()> {
        self.say(&format!("$ argosfs {}", words.join(" ")));
        let status = self.command(words, true)?;
        if status.success() {
            return Ok(());
        }
        Err(Error::Unavailable(format!("`argosfs {}` ended with {status}", words.join(" "))))
    }

    /// As [`Demo::argosfs`], whatever the exit code: it is part of the answer.
    fn show(&self, words: &[&str]) -> Result<()> {
        self.say(&format!("$ argosfs {}", words.join(" ")));
        self.command(words, true).map(drop)
    }

    fn argosfs_quietly(&self, words: &[&str]) -> Result<()> {
        self.command(words, false).map(drop)
    }

    fn command(&self, words: &[&str], heard: bool) -> Result<std::process::ExitStatus> {
        let failed = |error| Error::io("argosfs", "run", error);
        let program = std::env::current_exe().map_err(failed)?;
        let stdio = || if heard && !self.output.json { Stdio::inherit() } else { Stdio::null() };
        let errors = if heard { Stdio::inherit() } else { Stdio::null() };
        Command::new(program).args(words).stdin(Stdio::null()).stdout(stdio()).stderr(errors).status().map_err(failed)
    }

    fn clean_up(&self, made: bool) {
        for at in 0..DEVICES {
            let _ = fs::remove_file(self.directory.join(format!("disk{at}.img")));
        }
        for name in ["new1.img", "new2.img"] {
            let _ = fs::remove_file(self.directory.join(name));
        }
        let _ = fs::remove_dir(self.directory.join("mnt"));
        let _ = fs::remove_dir_all(self.directory.join("source"));
        let _ = fs::remove_dir_all(self.directory.join("run"));
        if made {
            let _ = fs::remove_dir(&self.directory);
        }
    }

    fn report(&self, kept: bool) -> Result<()> {
        let mut text = String::from("\nWhat happened, and how fast:\n");
        for step in &self.steps {
            text.push_str(&format!("  {}\n", step.text()));
        }
        text.push_str("Two of six devices were destroyed under a mounted pool; nothing was lost.\n");
        if kept {
            let seen = if self.isolated { " (visible only to this command's own namespace)" } else { "" };
            text.push_str(&format!("The pool is still mounted at {}{seen}.\n", self.mountpoint()));
            text.push_str(&format!("When you are done: argosfs umount {}\n", self.mountpoint()));
        }
        let steps: Vec<_> = self
            .steps
            .iter()
            .map(|step| {
                serde_json::json!({
                    "what": step.what, "seconds": step.took.as_secs_f64(), "bytes": step.bytes, "files": step.files,
                })
            })
            .collect();
        let answer = serde_json::json!({ "ok": true, "kept": kept, "steps": steps });
        self.output.answer(&Outcome { level: 0, answer, text })
    }
}

/// Writes noise over the whole image, labels included.
fn overwrite(path: &Path) -> Result<()> {
    let failed = |error| Error::io(path.display().to_string(), "overwrite", error);
    let mut file = File::options().write(true).open(path).map_err(failed)?;
    let length = file.seek(SeekFrom::End(0)).map_err(failed)?;
    file.rewind().map_err(failed)?;
    let mut noise = vec![0; 1 << 20];
    let mut random = Prng::new(length);
    let mut left = length;
    while left > 0 {
        crate::base::Entropy::fill(&mut random, &mut noise);
        let piece = left.min(noise.len() as u64) as usize;
        file.write_all(&noise[..piece]).map_err(failed)?;
        left -= piece as u64;
    }
    file.sync_all().map_err(failed)
}

fn truncate(path: &Path) -> Result<()> {
    let file = File::options().write(true).open(path);
    file.and_then(|file| file.set_len(0)).map_err(|error| Error::io(path.display().to_string(), "truncate", error))
}

/// Makes the kernel forget what it has cached of the files, so that reading asks the pool.
fn drop_caches(target: &Path) {
    if fs::write("/proc/sys/vm/drop_caches", "3").is_ok() {
        return;
    }
    let mut folders = vec![target.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => {
                    if let Ok(file) = File::open(entry.path()) {
                        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
                    }
                }
                _ => {}
            }
        }
    }
}
