//! A command's side of the socket.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::process::PidfdFlags;

use super::frame::{self, Kind};
use super::protocol::{Envelope, Failure, Info, Outcome, PROTOCOL, Request};
use super::runtime::Runtime;
use super::server::Reply;
use crate::base::{Error, Result, Uuid};

/// Bytes of an answer at most.
const ANSWER_MAX: usize = 256 << 20;

/// How long a daemon may take to say who it is.
const INTRODUCTION: Duration = Duration::from_secs(10);

/// The daemon of a mounted pool.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    info: Info,
}

impl Client {
    /// The daemon at a socket; `None` when nobody listens there.
    pub fn connect(socket: &Path) -> Result<Option<Client>> {
        let stream = match UnixStream::connect(socket) {
            Ok(stream) => stream,
            Err(error) => {
                return match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
                    _ => Err(failed(socket, error)),
                };
            }
        };
        stream.set_read_timeout(Some(INTRODUCTION)).map_err(|error| failed(socket, error))?;
        let outcome = match exchange(stream, socket, &Request::Info, &mut Silent) {
            Ok((outcome, _)) => outcome,
            // It went away meanwhile.
            Err(Error::Unavailable(_)) if !socket.exists() => return Ok(None),
            Err(error) => return Err(error),
        };
        let info = serde_json::from_value(outcome.answer)
            .map_err(|error| Error::Unavailable(format!("{} answers strangely: {error}", socket.display())))?;
        Ok(Some(Client { socket: socket.to_path_buf(), info }))
    }

    /// The daemon of a pool, if it is mounted.
    pub fn of_pool(runtime: &Runtime, pool: Uuid) -> Result<Option<Client>> {
        Client::connect(&runtime.socket(pool))
    }

    /// The daemons of all mounted pools that answer.
    pub fn all(runtime: &Runtime) -> Vec<Client> {
        runtime.sockets().iter().filter_map(|socket| Client::connect(socket).ok().flatten()).collect()
    }

    /// Who the daemon is.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Has the daemon perform an operation.
    pub fn call(&self, request: &Request, reply: &mut dyn Reply) -> Result<Outcome> {
        Ok(self.send(request, reply)?.0)
    }

    /// As [`Client::call`], and waits until the daemon is gone.
    pub fn call_last(&self, request: &Request, reply: &mut dyn Reply) -> Result<Outcome> {
        let (outcome, mut stream) = self.send(request, reply)?;
        // Not to be had for a process outside our pid namespace: then the connection has to do.
        let daemon = peer(&stream).and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
        // The daemon never closes this connection itself: the end of it is the end of the process.
        match frame::read(&mut stream) {
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => return Err(failed(&self.socket, error)),
            _ => {}
        }
        // It closes its files one after the other; the devices are free when it has closed all.
        if let Some(daemon) = daemon {
            let mut waiting = [PollFd::new(&daemon, PollFlags::IN)];
            while rustix::event::poll(&mut waiting, None) == Err(rustix::io::Errno::INTR) {}
        }
        Ok(outcome)
    }

    fn send(&self, request: &Request, reply: &mut dyn Reply) -> Result<(Outcome, UnixStream)> {
        let stream = UnixStream::connect(&self.socket).map_err(|error| failed(&self.socket, error))?;
        exchange(stream, &self.socket, request, reply)
    }
}

/// The process that listens at the other end.
fn peer(stream: &UnixStream) -> Option<rustix::process::Pid> {
    rustix::net::sockopt::socket_peercred(stream).ok().map(|peer| peer.pid)
}

fn failed(socket: &Path, error: io::Error) -> Error {
    let text = format!("the daemon at {} cannot be asked: {error}", socket.display());
    if error.kind() == io::ErrorKind::PermissionDenied {
        return Error::Usage(format!("{text}; run this as root or as the user who mounted the pool"));
    }
    Error::Unavailable(text)
}

fn exchange(
    mut stream: UnixStream,
    socket: &Path,
    request: &Request,
    reply: &mut dyn Reply,
) -> Result<(Outcome, UnixStream)> {
    let envelope = Envelope { protocol: PROTOCOL, request: request.clone() };
    let payload = serde_json::to_vec(&envelope).map_err(|_| Error::Invalid("a request that is not JSON"))?;
    frame::write(&mut stream, Kind::Request, &payload).map_err(|error| failed(socket, error))?;
    let strange = |error| Error::Unavailable(format!("{} answers strangely: {error}", socket.display()));
    let mut answer = Vec::new();
    loop {
        match frame::read(&mut stream).map_err(|error| failed(socket, error))? {
            Some((Kind::More, piece)) if answer.len() + piece.len() <= ANSWER_MAX => answer.extend_from_slice(&piece),
            Some((Kind::More, _)) => {
                return Err(Error::Unavailable(format!("{} answers at too great length", socket.display())));
            }
            Some((Kind::Progress, payload)) => {
                reply.progress(&serde_json::from_slice(&payload).map_err(strange)?)?;
            }
            Some((Kind::Data, payload)) => reply.data(&payload)?,
            Some((Kind::Answer, payload)) => {
                answer.extend_from_slice(&payload);
                return Ok((serde_json::from_slice(&answer).map_err(strange)?, stream));
            }
            Some((Kind::Failure, payload)) => {
                let failure: Failure = serde_json::from_slice(&payload).map_err(strange)?;
                return Err(failure.into_error());
            }
            Some((Kind::Request, _)) => {
                return Err(Error::Unavailable(format!("{} answers with a request", socket.display())));
            }
            None => {
                return Err(Error::Unavailable(
                    "the daemon went away before it answered; see its log, then mount the pool again".to_owned(),
                ));
            }
        }
    }
}

/// Listens to nothing but the answer.
pub struct Silent;

impl Reply for Silent {
    fn progress(&mut self, _: &super::protocol::Progress) -> Result<()> {
        Ok(())
    }

    fn data(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }
}
