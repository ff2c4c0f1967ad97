//! The process that serves a mounted pool.
//!
//! Invariants:
//! - Nothing is said to be mounted before requests are served and the socket answers.
//! - Whoever asks for the end is answered after everything is durable and the devices are closed.
//! - However the mount ends (asked for, by umount(8), by a signal, aborted), the same steps follow.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::log::Log;
use super::mount::{Ready, Saying};
use super::options::Options;
use super::output::{Output, print};
use crate::base::file::AccessTime;
use crate::base::{Error, Result};
use crate::control::archive;
use crate::control::locate::{self, Located, Spec};
use crate::control::open::{self, OpenOptions, Opened};
use crate::control::protocol::{Failure, Outcome};
use crate::control::runtime::Runtime;
use crate::control::service::{Mounted, PoolService};
use crate::control::status::MountStatus;
use crate::control::{Client, Server, mounts};
use crate::fs::background::{Background, INTERVAL, WORKERS};
use crate::fs::{self, Fs};
use crate::fuse::report::say;
use crate::fuse::{Ended, MountOptions, Report, Session};

/// Whom the daemon tells how the start went.
#[derive(Clone, Copy, Debug)]
pub enum Voice {
    /// The command that started it, on standard output.
    Parent,
    /// The user, who keeps it in the foreground.
    User(Output),
}

impl Voice {
    fn say(self, saying: &Saying) {
        match (self, saying) {
            (Voice::Parent, saying) => {
                let line = serde_json::to_string(saying).unwrap_or_default();
                let _ = print(format!("{line}\n").as_bytes());
            }
            (Voice::User(output), Saying::Note(text)) => output.note(text),
            (Voice::User(output), Saying::Ready(ready)) => {
                output.note(&format!("{} is mounted at {}", ready.name, ready.mountpoint));
            }
            // Returned as an error, which is printed by whoever gets it.
            (Voice::User(_), Saying::Failed(_)) => {}
        }
    }
}

/// How long between two looks for members that are missing.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Serves the pool until it is unmounted.
pub fn run(pool: &Path, mountpoint: &Path, options: &Options, voice: Voice) -> Result<u8> {
    let _ = rustix::thread::set_name(c"argosfs");
    // Before any thread exists: each inherits the mask, and signals wait for the one that takes them.
    signals::block();
    match prepare(pool, mountpoint, options, voice) {
        Ok(daemon) => daemon.serve(voice).map(|()| 0),
        Err(error) => {
            voice.say(&Saying::Failed(Failure::of(&error)));
            match voice {
                // The parent prints it.
                Voice::Parent => Ok(super::exit::UNAVAILABLE),
                Voice::User(_) => Err(error),
            }
        }
    }
}

/// How FUSE is to mount.
pub fn mount_options(source: &str, options: &Options) -> MountOptions {
    let mut mount = MountOptions::new(source);
    mount.read_only = options.read_only;
    mount.no_suid = options.no_suid;
    mount.no_dev = options.no_dev;
    mount.no_exec = options.no_exec;
    mount.no_atime = options.access_time == AccessTime::Never;
    mount.writeback = options.writeback;
    if let Some(allow_other) = options.allow_other {
        mount.allow_other = allow_other;
    }
    mount
}

struct Daemon {
    session: Arc<Session>,
    fs: Arc<Fs>,
    background: Option<Background>,
    service: Arc<PoolService>,
    server: Server,
    log: Log,
}

fn prepare(pool: &Path, mountpoint: &Path, options: &Options, voice: Voice) -> Result<Daemon> {
    let runtime = Runtime::find();
    runtime.prepare()?;
    let located = wait_for_members(&Spec::parse(pool), options, voice)?;
    if let Some(client) = Client::of_pool(&runtime, located.uuid)? {
        let info = client.info();
        return Err(Error::Busy(format!("pool {} is mounted already, at {}", info.name, info.mountpoint)));
    }
    if !protect_process() {
        voice.say(&Saying::Note(UNPROTECTED.to_owned()));
    }
    memory::keep_together();
    let open_options = OpenOptions::new(options.read_only, options.engine);
    let Opened { pool, store, notes } = open::open(&located, &open_options)?;
    notes.into_iter().for_each(|note| voice.say(&Saying::Note(note)));
    store.set_cache_limit(options.cache.0 as usize);
    store.set_discard(options.discard);
    let fs_options =
        fs::Options { access_time: options.access_time, read_only: options.read_only, ..fs::Options::default() };
    let fs = Arc::new(Fs::open(Arc::clone(&store), fs_options)?);

    let log = Log::open(options.log.clone().unwrap_or_else(|| runtime.log(located.uuid)));
    let session = Session::mount(mountpoint, &mount_options(&located.name, options), Report::stderr())?;
    let session = Arc::new(session);
    let mounted = Mounted {
        fs: Arc::clone(&fs),
        status: MountStatus {
            mountpoint: session.mountpoint().display().to_string(),
            read_only: options.read_only,
            writeback: options.writeback,
            pid: std::process::id(),
        },
        device: mounts::mounted_at(session.mountpoint()).map(|mount| mount.device).unwrap_or_default(),
        unmount: {
            let session = Arc::clone(&session);
            Box::new(move |lazy| session.unmount(lazy))
        },
    };
    let service = Arc::new(PoolService { mounted: Some(mounted), ..PoolService::unmounted(pool, store, open_options) });
    let started = Server::start(&runtime.socket(located.uuid), Arc::clone(&service) as _).and_then(|server| {
        let background = match options.read_only {
            true => None,
            false => Some(Background::start(Arc::clone(&fs), WORKERS, INTERVAL)?),
        };
        Ok((server, background))
    });
    match started {
        Ok((server, background)) => Ok(Daemon { session, fs, background, service, server, log }),
        Err(error) => {
            let _ = session.unmount(true);
            Err(error)
        }
    }
}

/// Finds the devices; waits for those that should be there, unless told not to.
fn wait_for_members(spec: &Spec, options: &Options, voice: Voice) -> Result<Located> {
    let began = Instant::now();
    let mut told = false;
    loop {
        let located = locate::locate(spec, &options.search);
        let patient = !options.degraded && began.elapsed() < options.wait;
        match located {
            Ok(located) if located.absent.is_empty() || !patient => return Ok(located),
            Ok(located) if !told => {
                told = true;
                let text = format!("waiting {} s for {}", options.wait.as_secs(), located.absent.join(", "));
                voice.say(&Saying::Note(format!("{text}; `-o degraded` does not wait")));
            }
            Ok(_) => {}
            Err(error) => return Err(error),
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// `PR_SET_IO_FLUSHER` of `linux/prctl.h`.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// What a user is told when the kernel does not take the request below.
const UNPROTECTED: &str = "the kernel was not told that freeing memory depends on this process, because CAP_SYS_RESOURCE is \
     missing: it may hang when memory runs short, above all in a control group that it shares with those who write";

/// Keeps the kernel from waiting for this process when it runs out of memory; whether that was permitted.
fn protect_process() -> bool {
    if rustix::process::geteuid().is_root() {
        let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    }
    // SAFETY: takes integers only.
    unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0 }
}

impl Daemon {
    fn serve(self, voice: Voice) -> Result<()> {
        let Daemon { session, fs, background, service, server, log } = self;
        let ended = Arc::new(AtomicBool::new(false));
        let give_up = |error| {
            // Nobody would be answered there.
            let _ = session.unmount(true);
            error
        };
        let signals = signals::on_request_to_end({
            let (session, fs, ended) = (Arc::clone(&session), Arc::clone(&fs), Arc::clone(&ended));
            move || end_on_signal(&session, &fs, &ended)
        })
        .map_err(give_up)?;
        if !service.pool.is_read_only()
            && let Err(error) = service.scrub.resume_interrupted()
        {
            say(format_args!("the scrub does not go on: {error}"));
        }
        let keeper = keep(&service, &log, &ended, matches!(voice, Voice::Parent)).map_err(give_up)?;
        voice.say(&Saying::Ready(ready(&service, &session)));
        if matches!(voice, Voice::Parent) {
            leave_parent(&log);
        }

        let served = session.run(&*fs);
        if !matches!(served, Ok(Ended::Unmounted)) {
            // Nobody would be answered there any more.
            let _ = session.unmount(true);
        }
        ended.store(true, Ordering::Release);
        signals.stop();
        service.scrub.stop();
        let _ = keeper.join();
        fs.forget_all();
        let closed = close(&service, background);
        if let Err(error) = &closed {
            say(format_args!("the pool was not closed cleanly: {error}"));
        }
        let outcome = Outcome { level: 0, answer: serde_json::json!({}), text: String::new() };
        server.finish(&closed.as_ref().map(|()| outcome).map_err(|error| Failure::of(error).into_error()));
        served.map(drop).and(closed)
    }
}

/// What was mounted. The state must not outlive this: it keeps devices open that are dropped later.
fn ready(service: &PoolService, session: &Session) -> Ready {
    let state = service.pool.state();
    Ready {
        name: state.label.name.clone(),
        uuid: state.label.uuid.to_string(),
        mountpoint: session.mountpoint().display().to_string(),
        pid: std::process::id(),
    }
}

/// Makes everything durable and the log empty.
fn close(service: &PoolService, background: Option<Background>) -> Result<()> {
    if let Some(background) = background {
        background.stop()?;
        if archive::is_due(service, true)
            && let Err(error) = archive::write(service, &|| true)
        {
            say(format_args!("the metadata was not archived: {error}"));
        }
        service.store.meta().checkpoint()?;
    }
    Ok(())
}

/// How long the last requests may take once nothing is mounted any more.
const LAST_REQUESTS: Duration = Duration::from_secs(5);

/// Unmounts; whoever still has files open loses them, but nothing that was written.
fn end_on_signal(session: &Session, fs: &Fs, ended: &AtomicBool) {
    match session.unmount(false) {
        // What was moved, is covered by another mount, or was taken off lazily while somebody uses it, cannot be seen there.
        Ok(()) => {
            let began = Instant::now();
            while began.elapsed() < LAST_REQUESTS {
                if ended.load(Ordering::Acquire) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            say(format_args!("told to end, and still in use; ending all the same"));
        }
        Err(error) => say(format_args!("told to end: {error}; ending all the same")),
    }
    // What the kernel still holds has to come here before the connection breaks.
    if let Ok(root) = std::fs::File::open(session.mountpoint()) {
        let _ = rustix::fs::syncfs(&root);
    }
    let _ = fs.syncfs();
    let aborted = session.abort();
    let _ = session.unmount(true);
    if let Err(error) = aborted {
        say(format_args!("the connection cannot be broken ({error}): it ends with this process"));
        std::process::exit(i32::from(super::exit::UNAVAILABLE));
    }
}

/// How often what reads found bad is repaired and new messages of devices are looked for.
const KEEP_EVERY: Duration = Duration::from_secs(1);

/// After so many rounds an archive is tried again that could not be written.
const ARCHIVE_AGAIN: u32 = 600;

/// Memory that is free is given back to the system once in so many rounds.
const TRIM_EVERY: u32 = 3;

/// Starts the thread that repairs what reads found bad, says what devices have to say, archives the metadata, and keeps
/// the log short.
fn keep(
    service: &Arc<PoolService>,
    log: &Log,
    ended: &Arc<AtomicBool>,
    own_log: bool,
) -> Result<std::thread::JoinHandle<()>> {
    let (service, log, ended) = (Arc::clone(service), log.clone(), Arc::clone(ended));
    let body = move || {
        let mut last_error = String::new();
        let mut rounds = 0u32;
        let mut archive_from = 0;
        while !ended.load(Ordering::Acquire) {
            std::thread::park_timeout(KEEP_EVERY);
            service.pool.take_notes().iter().for_each(|note| say(format_args!("{note}")));
            let state = service.pool.state();
            for device in state.present().filter_map(|member| member.device.as_ref()) {
                device.notes().iter().for_each(|note| say(format_args!("{note}")));
            }
            if !service.pool.is_read_only()
                && let Err(error) = service.store.repair_queued()
            {
                let text = error.to_string();
                if text != last_error {
                    say(format_args!("repair: {text}"));
                    last_error = text;
                }
            }
            let may_archive = !service.pool.is_read_only() && service.store.meta().poisoned().is_none();
            if rounds >= archive_from
                && may_archive
                && archive::is_due(&service, false)
                && let Err(error) = archive::write(&service, &|| !ended.load(Ordering::Acquire))
                && !ended.load(Ordering::Acquire)
            {
                say(format_args!("the metadata was not archived: {error}"));
                archive_from = rounds + ARCHIVE_AGAIN;
            }
            if own_log {
                log.shorten();
            }
            rounds += 1;
            if rounds.is_multiple_of(TRIM_EVERY) {
                memory::give_back();
            }
        }
    };
    std::thread::Builder::new()
        .name("argosfs-repair".to_owned())
        .spawn(body)
        .map_err(|error| Error::io("the system", "start a thread", error))
}

/// Lets go of everything that belongs to the command that started us.
fn leave_parent(log: &Log) {
    log.take_stderr();
    let _ = rustix::process::setsid();
    let _ = std::env::set_current_dir("/");
    if let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        // The parent reads until this is closed, or the line before.
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

mod memory {
    //! What the C library's allocator is told. Blocks are taken in one thread and freed in another all the time; with an
    //! arena for each thread, as is its habit, the daemon needed four times the memory it had in use.

    #[cfg(target_env = "gnu")]
    pub fn keep_together() {
        const ARENAS: libc::c_int = 2;
        // SAFETY: takes integers only, before other threads are started.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
    }

    #[cfg(target_env = "gnu")]
    pub fn give_back() {
        // SAFETY: takes an integer; the allocator locks what it looks at.
        unsafe { libc::malloc_trim(0) };
    }

    #[cfg(not(target_env = "gnu"))]
    pub fn keep_together() {}

    #[cfg(not(target_env = "gnu"))]
    pub fn give_back() {}
}

mod signals {
    //! SIGTERM and SIGINT, taken by a thread of their own.

    use std::mem::MaybeUninit;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use crate::base::{Error, Result};

    /// The signals that ask for the end, and one that does not.
    const TAKEN: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

    fn set() -> libc::sigset_t {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises what it is given.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        for signal in TAKEN {
            // SAFETY: the set was initialised above.
            unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
        }
        // SAFETY: initialised above.
        unsafe { set.assume_init() }
    }

    /// Holds the signals back in this thread and all it starts.
    pub fn block() {
        // SAFETY: the set is initialised; a null old mask is allowed.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set(), std::ptr::null_mut()) };
    }

    /// The thread that waits for signals.
    pub struct Waiting {
        done: Arc<AtomicBool>,
        thread: std::thread::JoinHandle<()>,
    }

    impl Waiting {
        /// Ends the thread.
        pub fn stop(self) {
            use std::os::unix::thread::JoinHandleExt;
            self.done.store(true, Ordering::Release);
            if !self.thread.is_finished() {
                // SAFETY: the thread has not been joined, so its id is valid. It has the signal blocked and takes it.
                unsafe { libc::pthread_kill(self.thread.as_pthread_t(), libc::SIGHUP) };
            }
            let _ = self.thread.join();
        }
    }

    /// Calls `end` once, when SIGTERM or SIGINT comes. SIGHUP is taken and means nothing.
    pub fn on_request_to_end(end: impl FnOnce() + Send + 'static) -> Result<Waiting> {
        let done = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&done);
        let body = move || {
            let set = set();
            let mut end = Some(end);
            while !seen.load(Ordering::Acquire) {
                let mut signal = 0;
                // SAFETY: both point to live values.
                let waited = unsafe { libc::sigwait(&set, &mut signal) };
                if waited == 0
                    && signal != libc::SIGHUP
                    && let Some(end) = end.take()
                {
                    end();
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("argosfs-signals".to_owned())
            .spawn(body)
            .map_err(|error| Error::io("the system", "start a thread", error))?;
        Ok(Waiting { done, thread })
    }
}
