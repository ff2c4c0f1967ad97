//! What can be asked of a pool, and what comes back, as JSON.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use serde::{Deserialize, Serialize};

use crate::base::Error;

/// Version of the protocol; a daemon refuses others.
pub const PROTOCOL: u32 = 3;

/// A request with the version of the protocol it is in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Envelope {
    pub protocol: u32,
    pub request: Request,
}

/// An operation on a pool.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Which pool this is and where it is mounted.
    Info,
    /// Health, devices, space, work going on.
    Status,
    /// Makes everything durable.
    Sync,
    /// Verifies every shard and repairs what is bad; `limit`: bytes a second at most, 0 for no limit.
    Scrub { action: ScrubAction, limit: u64 },
    /// What cannot be repaired any more, and what is to become of it.
    Damage { action: DamageAction },
    /// Brings every stripe back to full redundancy.
    Rebuild,
    /// Tells the devices which of their blocks are free.
    Trim,
    /// Puts a device in another's place; the data follows by [`Request::Rebuild`].
    Replace { old: String, new: String, force: bool },
    /// Checks the metadata, with `data` every shard too; `repair` mends what can be mended beside users.
    Fsck { data: bool, repair: bool },
    /// Streams the whole metadata; `archived`: as it is in the newest archive.
    ExportMeta { archived: bool },
    /// Makes devices fail, in pools that were made for it.
    Inject { action: InjectAction },
    /// Unmounts and ends the daemon; answered when everything is durable.
    Unmount { lazy: bool },
}

/// What is to become of the pool's scrub.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScrubAction {
    /// Begins or goes on, and is answered at the end.
    Wait,
    /// Begins or goes on, and is answered at once.
    Start,
    Pause,
    Resume,
    Cancel,
    /// Changes nothing.
    Status,
}

/// What is to be done about damage.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DamageAction {
    /// Names every file with content that cannot be read.
    List,
    /// What cannot be read of a file reads as zeros from now on.
    Accept { path: String },
    /// The file is removed.
    Delete { path: String },
}

/// What is to become of the faults on demand.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InjectAction {
    List,
    Clear,
    /// `harm`: `error`, `corrupt`, or milliseconds of delay; `on`: `read`, `write`, `flush` or `any`.
    Add {
        device: String,
        harm: Harm,
        on: Option<String>,
        start: u64,
        length: u64,
        one_in: u64,
        count: Option<u64>,
    },
}

/// What a request suffers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Harm {
    Error,
    Corrupt,
    DelayMs(u64),
}

impl Request {
    /// Whether the operation writes to the pool.
    pub fn writes(&self) -> bool {
        match self {
            Request::Scrub { action, .. } => *action != ScrubAction::Status,
            Request::Damage { action } => *action != DamageAction::List,
            Request::Sync | Request::Rebuild | Request::Trim | Request::Replace { .. } => true,
            Request::Fsck { repair, .. } => *repair,
            _ => false,
        }
    }
}

/// Who answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Info {
    pub name: String,
    pub uuid: String,
    pub pid: u32,
    pub mountpoint: String,
    /// `major:minor` of the mount, as `/proc/self/mountinfo` has it.
    pub device: String,
    /// Paths of the members that are there.
    pub members: Vec<String>,
    pub version: String,
}

/// How an operation ended: 0 in order, 1 something was or is to be done, 2 something is lost or fails.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub level: u8,
    /// The answer for programs; which one follows from the request.
    pub answer: serde_json::Value,
    /// The same for people.
    pub text: String,
}

/// How far long work is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Progress {
    pub work: String,
    pub done: u64,
    /// 0 when unknown.
    pub total: u64,
    pub unit: String,
}

/// An error on its way over the socket.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failure {
    pub kind: String,
    pub message: String,
}

impl Failure {
    /// What the peer is told about an error.
    pub fn of(error: &Error) -> Failure {
        let kind = match error {
            Error::Usage(_) | Error::Invalid(_) => "usage",
            Error::Busy(_) => "busy",
            Error::NotPermitted | Error::Access => "permission",
            Error::Io { .. } => "io",
            Error::Corrupt(_) => "corrupt",
            Error::Poisoned(_) => "poisoned",
            Error::ReadOnly => "read-only",
            Error::NoSpace => "no-space",
            _ => "unavailable",
        };
        // Those that say what they are by themselves when printed carry only their text.
        let message = match error {
            Error::Corrupt(text) | Error::Poisoned(text) => text.clone(),
            other => other.to_string(),
        };
        Failure { kind: kind.to_owned(), message }
    }

    /// The error a peer told about.
    pub fn into_error(self) -> Error {
        match self.kind.as_str() {
            "usage" => Error::Usage(self.message),
            "busy" => Error::Busy(self.message),
            "permission" => Error::NotPermitted,
            "corrupt" => Error::Corrupt(self.message),
            "poisoned" => Error::Poisoned(self.message),
            "read-only" => Error::ReadOnly,
            "no-space" => Error::NoSpace,
            _ => Error::Unavailable(self.message),
        }
    }
}
