//! The socket, with a service that only pretends.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::client::Silent;
use super::frame::{self, Kind};
use super::protocol::{DamageAction, Failure, Progress};
use super::runtime::Runtime;
use super::*;
use crate::base::{Error, Result, Uuid};

/// A directory that is removed with everything in it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("argosfs-control-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Pretender;

impl Service for Pretender {
    fn serve(&self, request: &Request, reply: &mut dyn Reply) -> Result<Outcome> {
        let answer = |level, answer| Ok(Outcome { level, answer, text: "done".to_owned() });
        match request {
            Request::Info => {
                let info = Info {
                    name: "tank".to_owned(),
                    uuid: Uuid([5; 16]).to_string(),
                    pid: std::process::id(),
                    mountpoint: "/mnt".to_owned(),
                    device: "0:55".to_owned(),
                    members: vec!["/dev/a".to_owned()],
                    version: "0".to_owned(),
                };
                answer(0, serde_json::to_value(info).expect("JSON"))
            }
            Request::ExportMeta { archived: false } => {
                for done in 0..3u64 {
                    let unit = "rows".to_owned();
                    reply.progress(&Progress { work: "export".to_owned(), done, total: 3, unit })?;
                    reply.data(&vec![done as u8; frame::FRAME_MAX + 7])?;
                }
                answer(0, serde_json::json!({ "rows": 3 }))
            }
            Request::Damage { .. } => answer(2, serde_json::json!({ "files": "x".repeat(3 * frame::FRAME_MAX) })),
            Request::Status => answer(1, serde_json::json!({ "health": "DEGRADED" })),
            Request::Unmount { lazy: false } => Err(Error::Busy("files are open".to_owned())),
            Request::Unmount { lazy: true } => answer(0, serde_json::Value::Null),
            Request::Replace { old, .. } => Err(Error::Usage(format!("{old} is no member"))),
            _ => Err(Error::Poisoned("a flush failed".to_owned())),
        }
    }
}

fn serve(scratch: &Scratch) -> (Runtime, Server) {
    let runtime = Runtime::at(&scratch.0);
    runtime.prepare().expect("makes the directory");
    let server = Server::start(&runtime.socket(Uuid([5; 16])), Arc::new(Pretender)).expect("listens");
    (runtime, server)
}

fn client(runtime: &Runtime) -> Client {
    Client::of_pool(runtime, Uuid([5; 16])).expect("connects").expect("is there")
}

fn finished() -> Result<Outcome> {
    Ok(Outcome { level: 0, answer: serde_json::Value::Null, text: String::new() })
}

#[test]
fn requests_are_answered_and_errors_keep_their_kind() {
    let scratch = Scratch::new("answers");
    let (runtime, server) = serve(&scratch);
    let client = client(&runtime);
    assert_eq!(client.info().name, "tank");
    let status = client.call(&Request::Status, &mut Silent).expect("answers");
    assert_eq!((status.level, status.answer["health"].as_str()), (1, Some("DEGRADED")));
    let replace = Request::Replace { old: "x".to_owned(), new: "y".to_owned(), force: false };
    assert!(matches!(client.call(&replace, &mut Silent), Err(Error::Usage(text)) if text == "x is no member"));
    assert!(matches!(client.call(&Request::Sync, &mut Silent), Err(Error::Poisoned(text)) if text == "a flush failed"));
    server.finish(&finished());
    assert!(Client::of_pool(&runtime, Uuid([5; 16])).expect("asks").is_none(), "the socket is gone");
}

#[test]
fn an_answer_may_be_longer_than_a_frame() {
    let scratch = Scratch::new("long");
    let (runtime, server) = serve(&scratch);
    let request = Request::Damage { action: DamageAction::List };
    let damage = client(&runtime).call(&request, &mut Silent).expect("answers");
    assert_eq!(damage.answer["files"].as_str().map(str::len), Some(3 * frame::FRAME_MAX));
    server.finish(&finished());
}

#[test]
fn streams_arrive_whole_and_in_order() {
    struct Collect(Vec<u8>, Vec<u64>);
    impl Reply for Collect {
        fn progress(&mut self, progress: &Progress) -> Result<()> {
            self.1.push(progress.done);
            Ok(())
        }
        fn data(&mut self, bytes: &[u8]) -> Result<()> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }
    }
    let scratch = Scratch::new("streams");
    let (runtime, server) = serve(&scratch);
    let mut collect = Collect(Vec::new(), Vec::new());
    client(&runtime).call(&Request::ExportMeta { archived: false }, &mut collect).expect("answers");
    let expected: Vec<u8> = (0..3u8).flat_map(|byte| vec![byte; frame::FRAME_MAX + 7]).collect();
    assert!(collect.0 == expected);
    assert_eq!(collect.1, [0, 1, 2]);
    server.finish(&finished());
}

#[test]
fn the_socket_is_for_its_user_alone_and_there_is_one() {
    let scratch = Scratch::new("private");
    let (runtime, server) = serve(&scratch);
    let socket = runtime.socket(Uuid([5; 16]));
    let mode = |path| std::fs::metadata(path).expect("is there").permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o600);
    assert_eq!(mode(&runtime.path().to_path_buf()), 0o700);
    assert!(matches!(Server::start(&socket, Arc::new(Pretender)), Err(Error::Busy(_))));
    assert_eq!(Client::all(&runtime).len(), 1);
    server.finish(&finished());
    std::fs::set_permissions(runtime.path(), std::fs::Permissions::from_mode(0o777)).expect("changes");
    assert!(matches!(runtime.prepare(), Err(Error::Unavailable(_))), "others could put a socket there");
}

#[test]
fn the_server_ends_even_when_its_directory_is_gone() {
    let scratch = Scratch::new("gone");
    let (_, server) = serve(&scratch);
    std::fs::remove_dir_all(&scratch.0).expect("removes");
    server.finish(&finished());
}

#[test]
fn a_dead_daemons_socket_is_replaced() {
    let scratch = Scratch::new("dead");
    let runtime = Runtime::at(&scratch.0);
    runtime.prepare().expect("makes the directory");
    let socket = runtime.socket(Uuid([5; 16]));
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("binds"));
    assert!(socket.exists());
    assert!(Client::connect(&socket).expect("asks").is_none());
    let (_, server) = serve(&scratch);
    server.finish(&finished());
}

#[test]
fn a_refused_end_is_told_at_once_and_an_accepted_one_when_all_is_done() {
    let scratch = Scratch::new("end");
    let (runtime, server) = serve(&scratch);
    let client = client(&runtime);
    let busy = client.call_last(&Request::Unmount { lazy: false }, &mut Silent);
    assert!(matches!(busy, Err(Error::Busy(_))));
    // The accepted one: nothing may arrive before `finish`, and the connection stays open after it.
    let mut stream = UnixStream::connect(runtime.socket(Uuid([5; 16]))).expect("connects");
    let request = br#"{"protocol":3,"request":{"unmount":{"lazy":true}}}"#;
    frame::write(&mut stream, Kind::Request, request).expect("sends");
    stream.set_read_timeout(Some(std::time::Duration::from_millis(200))).expect("sets");
    assert!(frame::read(&mut stream).is_err(), "told before the end");
    stream.set_read_timeout(None).expect("sets");
    server.finish(&Err(Error::Poisoned("too late".to_owned())));
    let (kind, payload) = frame::read(&mut stream).expect("reads").expect("an answer");
    assert_eq!(kind, Kind::Failure);
    let failure: Failure = serde_json::from_slice(&payload).expect("JSON");
    assert_eq!((&*failure.kind, &*failure.message), ("poisoned", "too late"));
    stream.set_read_timeout(Some(std::time::Duration::from_millis(200))).expect("sets");
    assert!(frame::read(&mut stream).is_err(), "closed although the process lives");
}

#[test]
fn who_asked_for_the_end_is_answered_even_when_it_comes_at_once() {
    /// Its unmount returns only after the daemon has begun to finish.
    struct Slow(std::path::PathBuf);
    impl Service for Slow {
        fn serve(&self, _: &Request, _: &mut dyn Reply) -> Result<Outcome> {
            std::fs::write(self.0.with_extension("asked"), "").expect("writes");
            while self.0.exists() {
                std::thread::yield_now();
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
            finished()
        }
    }
    let scratch = Scratch::new("race");
    let runtime = Runtime::at(&scratch.0);
    runtime.prepare().expect("makes the directory");
    let socket = runtime.socket(Uuid([5; 16]));
    let server = Server::start(&socket, Arc::new(Slow(socket.clone()))).expect("listens");
    let mut stream = UnixStream::connect(&socket).expect("connects");
    let request = br#"{"protocol":3,"request":{"unmount":{"lazy":true}}}"#;
    frame::write(&mut stream, Kind::Request, request).expect("sends");
    while !socket.with_extension("asked").exists() {
        std::thread::yield_now();
    }
    server.finish(&finished());
    let (kind, _) = frame::read(&mut stream).expect("reads").expect("an answer");
    assert_eq!(kind, Kind::Answer);
}

#[test]
fn hostile_bytes_do_not_stop_the_server() {
    let scratch = Scratch::new("hostile");
    let (runtime, server) = serve(&scratch);
    let socket = runtime.socket(Uuid([5; 16]));
    let long = [b'Q', 255, 255, 255, 255];
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let mut deep = vec![b'Q'];
    deep.extend_from_slice(&(nested.len() as u32).to_le_bytes());
    deep.extend_from_slice(nested.as_bytes());
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &long, &deep, b"Q\x02\0\0\0{}", b"Q", b""] {
        let mut stream = UnixStream::connect(&socket).expect("connects");
        let _ = stream.write_all(bytes);
    }
    let mut stream = UnixStream::connect(&socket).expect("connects");
    frame::write(&mut stream, Kind::Request, br#"{"protocol":99,"request":"future"}"#).expect("sends");
    let (kind, payload) = frame::read(&mut stream).expect("reads").expect("an answer");
    assert_eq!(kind, Kind::Failure);
    assert!(String::from_utf8_lossy(&payload).contains("version 3"));
    assert_eq!(client(&runtime).info().name, "tank");
    server.finish(&finished());
}

#[test]
fn a_reply_that_nobody_reads_fails_the_work() {
    let scratch = Scratch::new("deaf");
    struct Endless(Arc<Mutex<Option<Error>>>);
    impl Service for Endless {
        fn serve(&self, _: &Request, reply: &mut dyn Reply) -> Result<Outcome> {
            loop {
                if let Err(error) = reply.data(&[0; 4096]) {
                    *self.0.lock().expect("not poisoned") = Some(error);
                    return Err(Error::Unsupported);
                }
            }
        }
    }
    let runtime = Runtime::at(&scratch.0);
    runtime.prepare().expect("makes the directory");
    let socket = runtime.socket(Uuid([5; 16]));
    let ended = Arc::new(Mutex::new(None));
    let server = Server::start(&socket, Arc::new(Endless(Arc::clone(&ended)))).expect("listens");
    let mut stream = UnixStream::connect(&socket).expect("connects");
    frame::write(&mut stream, Kind::Request, br#"{"protocol":3,"request":{"export-meta":{"archived":false}}}"#)
        .expect("sends");
    assert!(matches!(frame::read(&mut stream).expect("reads"), Some((Kind::Data, _))));
    drop(stream);
    while ended.lock().expect("not poisoned").is_none() {
        std::thread::yield_now();
    }
    server.finish(&finished());
}
