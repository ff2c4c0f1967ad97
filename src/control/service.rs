//! Performs requests on an open pool, for the socket and for commands alike.

use std::sync::Arc;

use super::open::OpenOptions;
use super::ops;
pub use super::ops::{
    FsckMode, Opening, export_archived, fsck_opened, fsck_unmounted, import, import_dry_run, recover,
};
use super::protocol::{Info, Outcome, Request};
use super::scrub::Scrubber;
use super::server::{Reply, Service};
use super::status::{MountStatus, Status};
use super::work::Work;
use crate::base::{Error, Result};
use crate::fs::Fs;
use crate::pool::Pool;
use crate::store::Store;

/// Ends a mount: unmounts, at once out of sight if `true`.
pub type Unmount = Box<dyn Fn(bool) -> Result<()> + Send + Sync>;

/// What a mounted pool has besides.
pub struct Mounted {
    pub fs: Arc<Fs>,
    pub status: MountStatus,
    /// `major:minor` of the mount.
    pub device: String,
    pub unmount: Unmount,
}

/// An open pool that can be asked.
pub struct PoolService {
    pub pool: Arc<Pool>,
    pub store: Arc<Store>,
    /// How its devices were opened.
    pub options: OpenOptions,
    pub mounted: Option<Mounted>,
    pub work: Work,
    pub scrub: Scrubber,
}

impl PoolService {
    /// A pool that this process has opened for one command.
    pub fn unmounted(pool: Arc<Pool>, store: Arc<Store>, options: OpenOptions) -> PoolService {
        let scrub = Scrubber::new(Arc::clone(&store), Arc::clone(&options.clock));
        PoolService { pool, store, options, mounted: None, work: Work::default(), scrub }
    }

    /// Makes everything durable, what is only in memory included.
    pub fn sync(&self) -> Result<()> {
        match &self.mounted {
            Some(mounted) => {
                // So that what was removed is free when this returns.
                let reclaimed = mounted.fs.reclaim_waiting();
                mounted.fs.syncfs()?;
                reclaimed
            }
            None => self.store.durable_point(),
        }
    }

    fn info(&self) -> Result<Outcome> {
        let state = self.pool.state();
        let mounted = self.mounted.as_ref();
        let info = Info {
            name: state.label.name.clone(),
            uuid: state.label.uuid.to_string(),
            pid: std::process::id(),
            mountpoint: mounted.map(|mounted| mounted.status.mountpoint.clone()).unwrap_or_default(),
            device: mounted.map(|mounted| mounted.device.clone()).unwrap_or_default(),
            members: state
                .label
                .members
                .iter()
                .map(|member| member.path.clone())
                .filter(|path| !path.is_empty())
                .collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        outcome(0, &info, String::new())
    }

    fn status(&self) -> Result<Outcome> {
        let mounted = self.mounted.as_ref().map(|mounted| mounted.status.clone());
        Status::of(&self.pool, &self.store, mounted, self.work.now(), self.scrub.status())?.outcome()
    }
}

impl Service for PoolService {
    fn serve(&self, request: &Request, reply: &mut dyn Reply) -> Result<Outcome> {
        match request {
            Request::Info => self.info(),
            Request::Status => self.status(),
            Request::Sync => {
                self.sync()?;
                let durable = self.store.meta().durable().0;
                outcome(0, &serde_json::json!({ "durable": durable }), String::new())
            }
            Request::Scrub { action, limit } => ops::scrub(self, *action, *limit, reply),
            Request::Inject { action } => ops::inject(self, action),
            Request::Damage { action } => ops::damage(self, action),
            Request::Rebuild => ops::rebuild(self, reply),
            Request::Trim => ops::trim(self, reply),
            Request::Replace { old, new, force } => ops::replace(self, old, new, *force, reply),
            Request::Fsck { data, repair } => ops::fsck(self, *data, *repair, reply),
            Request::ExportMeta { archived: false } => ops::export(self, reply),
            Request::ExportMeta { archived: true } => ops::export_archived(&self.pool, reply),
            Request::Unmount { lazy } => match &self.mounted {
                Some(mounted) => {
                    (mounted.unmount)(*lazy)?;
                    outcome(0, &serde_json::Value::Null, String::new())
                }
                None => Err(Error::Usage("the pool is not mounted".to_owned())),
            },
        }
    }
}

/// An answer.
pub fn outcome(level: u8, answer: &impl serde::Serialize, text: String) -> Result<Outcome> {
    let answer = serde_json::to_value(answer).map_err(|_| Error::Invalid("an answer that is not JSON"))?;
    Ok(Outcome { level, answer, text })
}
