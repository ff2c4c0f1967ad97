//! The daemon's side of the socket.
//!
//! Invariants:
//! - Only root and the user who mounted are answered.
//! - Each connection has a thread of its own and carries one request; at most [`CONNECTIONS_MAX`] are open.
//! - A connection whose request ended the daemon stays open until the process is gone: its end is the client's proof.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::frame::{self, Kind};
use super::protocol::{Envelope, Failure, Outcome, PROTOCOL, Progress, Request};
use crate::base::{Error, Result};

/// Connections served at once.
pub const CONNECTIONS_MAX: usize = 32;
/// How long a client may take to send its request, or to take a piece of the answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where an operation sends what comes before its answer.
pub trait Reply {
    /// Tells how far the work is. Fails when nobody listens any more.
    fn progress(&mut self, progress: &Progress) -> Result<()>;
    /// Sends a piece of a stream.
    fn data(&mut self, bytes: &[u8]) -> Result<()>;
}

/// What answers requests.
pub trait Service: Send + Sync {
    /// Performs the operation.
    fn serve(&self, request: &Request, reply: &mut dyn Reply) -> Result<Outcome>;
}

/// A listening socket.
pub struct Server {
    path: PathBuf,
    shared: Arc<Shared>,
    socket: UnixListener,
    listener: thread::JoinHandle<()>,
}

struct Shared {
    service: Arc<dyn Service>,
    connections: AtomicUsize,
    stopping: AtomicBool,
    farewells: Mutex<Farewells>,
    /// Notified when a request to end has been served.
    served: Condvar,
}

/// Requests to end the daemon.
#[derive(Default)]
struct Farewells {
    /// Those being served: they may end it before they are done themselves.
    underway: usize,
    /// Connections to be told when the daemon has finished.
    waiting: Vec<UnixStream>,
}

impl Shared {
    fn farewells(&self) -> MutexGuard<'_, Farewells> {
        self.farewells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    /// Listens at `path`. A socket that nobody listens on is replaced; one that somebody does is an error.
    pub fn start(path: &Path, service: Arc<dyn Service>) -> Result<Server> {
        let name = path.display().to_string();
        let failed = |operation| {
            let name = name.clone();
            move |error: io::Error| Error::io(name, operation, error)
        };
        if UnixStream::connect(path).is_ok() {
            return Err(Error::Busy(format!("another argosfs daemon listens on {name}: the pool is mounted already")));
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove the old socket")(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed("make the socket"))?;
        // The directory lets nobody else in either; until this call the mode is what the umask leaves.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed("protect the socket"))?;
        let shared = Arc::new(Shared {
            service,
            connections: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            farewells: Mutex::default(),
            served: Condvar::new(),
        });
        let socket = listener.try_clone().map_err(failed("make the socket"))?;
        let for_thread = Arc::clone(&shared);
        let listener = thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || accept(&listener, &for_thread))
            .map_err(failed("start the control thread"))?;
        Ok(Server { path: path.to_path_buf(), shared, socket, listener })
    }

    /// Ends: removes the socket, answers those who asked for the end with `outcome`, and keeps their connections open
    /// until the process is gone.
    pub fn finish(self, outcome: &Result<Outcome>) {
        self.shared.stopping.store(true, Ordering::Release);
        let _ = std::fs::remove_file(&self.path);
        // The listener waits in accept: this wakes it, and refuses whoever comes now.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        let _ = self.listener.join();
        let mut farewells = self.shared.farewells();
        while farewells.underway > 0 {
            farewells = self.shared.served.wait(farewells).unwrap_or_else(PoisonError::into_inner);
        }
        for mut stream in std::mem::take(&mut farewells.waiting) {
            let _ = send_outcome(&mut stream, outcome);
            std::mem::forget(stream);
        }
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    loop {
        let accepted = listener.accept();
        if shared.stopping.load(Ordering::Acquire) {
            return;
        }
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors or memory: others will be closed in time.
                if !matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) {
                    thread::sleep(Duration::from_millis(100));
                }
                continue;
            }
        };
        if shared.connections.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS_MAX {
            shared.connections.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let for_thread = Arc::clone(shared);
        let spawned = thread::Builder::new().name("control-peer".to_owned()).spawn(move || {
            let _ = answer(stream, &for_thread);
            for_thread.connections.fetch_sub(1, Ordering::AcqRel);
        });
        if spawned.is_err() {
            shared.connections.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn answer(mut stream: UnixStream, shared: &Shared) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    if !may_ask(&stream)? {
        return send_outcome(&mut stream, &Err(Error::NotPermitted));
    }
    let Some((Kind::Request, payload)) = frame::read(&mut stream)? else { return Ok(()) };
    let request = match parse(&payload) {
        Ok(request) => request,
        Err(error) => return send_outcome(&mut stream, &Err(error)),
    };
    let ends = matches!(request, Request::Unmount { .. });
    if ends {
        shared.farewells().underway += 1;
    }
    let mut reply = StreamReply { stream: &mut stream };
    let outcome = shared.service.serve(&request, &mut reply);
    let leaves = ends && outcome.is_ok();
    let answered = if leaves { Ok(()) } else { send_outcome(&mut stream, &outcome) };
    if ends {
        let mut farewells = shared.farewells();
        farewells.underway -= 1;
        if leaves {
            farewells.waiting.push(stream);
        }
        shared.served.notify_all();
    }
    answered
}

fn parse(payload: &[u8]) -> Result<Request> {
    // The version first: the request of another version may not be understood.
    let value: serde_json::Value =
        serde_json::from_slice(payload).map_err(|error| Error::Usage(format!("the request is not JSON: {error}")))?;
    let version = value.get("protocol").and_then(serde_json::Value::as_u64);
    if version != Some(u64::from(PROTOCOL)) {
        return Err(Error::Unavailable(format!(
            "the daemon speaks version {PROTOCOL} of the protocol, the command another: use the argosfs that mounted the \
             pool, or mount it again with this one"
        )));
    }
    let envelope: Envelope = serde_json::from_value(value)
        .map_err(|error| Error::Usage(format!("the request is not understood: {error}")))?;
    Ok(envelope.request)
}

/// Whether the peer is root or the user this process runs as.
fn may_ask(stream: &UnixStream) -> io::Result<bool> {
    let peer = rustix::net::sockopt::socket_peercred(stream.as_fd())?;
    Ok(peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}

fn send_outcome(stream: &mut UnixStream, outcome: &Result<Outcome>) -> io::Result<()> {
    match outcome {
        Ok(outcome) => frame::write_answer(stream, &serde_json::to_vec(outcome)?),
        Err(error) => frame::write(stream, Kind::Failure, &serde_json::to_vec(&Failure::of(error))?),
    }
}

struct StreamReply<'s> {
    stream: &'s mut UnixStream,
}

impl StreamReply<'_> {
    fn send(&mut self, kind: Kind, payload: &[u8]) -> Result<()> {
        frame::write(self.stream, kind, payload)
            .map_err(|error| Error::io("the control socket", "answer the command", error))
    }
}

impl Reply for StreamReply<'_> {
    fn progress(&mut self, progress: &Progress) -> Result<()> {
        let payload = serde_json::to_vec(progress).map_err(|_| Error::Invalid("progress that is not JSON"))?;
        self.send(Kind::Progress, &payload)
    }

    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        bytes.chunks(frame::FRAME_MAX).try_for_each(|piece| self.send(Kind::Data, piece))
    }
}
