//! Which pool a command is about, and whether it is asked through its daemon or opened here.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::output::Output;
use crate::base::{Error, Result, Uuid};
use crate::control::locate::{self, Located, Spec};
use crate::control::open::{self, OpenOptions};
use crate::control::protocol::{Outcome, Request};
use crate::control::runtime::Runtime;
use crate::control::server::{Reply, Service};
use crate::control::service::{self, PoolService};
use crate::control::{Client, mounts};
use crate::device::EngineChoice;

/// How most commands name a pool.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct PoolArguments {
    /// A mount point, the path of any device of the pool, its name, or argosfs:UUID; not needed when one pool is mounted.
    pub pool: Option<PathBuf>,
    /// Also look for devices in this directory.
    #[arg(long, value_name = "DIR")]
    pub search: Vec<PathBuf>,
}

/// Where a pool is reached.
pub enum Target {
    Mounted(Box<Client>),
    Unmounted(Box<Located>),
}

impl PoolArguments {
    /// Finds the pool.
    pub fn resolve(&self) -> Result<Target> {
        let runtime = Runtime::find();
        match &self.pool {
            Some(pool) => resolve(&runtime, pool, &self.search),
            None => the_only_one(&runtime),
        }
    }

    /// Finds the pool and has it perform an operation.
    pub fn perform(&self, request: &Request, reply: &mut dyn Reply, output: Output) -> Result<Outcome> {
        perform(&self.resolve()?, request, reply, output)
    }
}

fn the_only_one(runtime: &Runtime) -> Result<Target> {
    let mut clients = Client::all(runtime);
    match (clients.pop(), clients.len()) {
        (Some(client), 0) => Ok(Target::Mounted(Box::new(client))),
        (Some(client), _) => {
            let mut names: Vec<String> = clients.iter().map(|client| client.info().name.clone()).collect();
            names.push(client.info().name.clone());
            Err(Error::Usage(format!("several pools are mounted, say which: {}", names.join(", "))))
        }
        (None, _) => {
            Err(Error::Usage("no pool is mounted: name one by the path of a device, or by its name".to_owned()))
        }
    }
}

/// The pool that `text` means: a mount point, or what [`Spec`] says.
pub fn resolve(runtime: &Runtime, text: &Path, search: &[PathBuf]) -> Result<Target> {
    if let Some(client) = client_at(runtime, text)? {
        return Ok(Target::Mounted(Box::new(client)));
    }
    let spec = Spec::parse(text);
    let clients = Client::all(runtime);
    let mut meant = matching(&clients, &spec, text)?;
    if meant.is_none()
        && let Some(name) = text.to_str()
    {
        // Something in this directory may have the name of a pool.
        meant = matching(&clients, &Spec::Name(name.to_owned()), text)?;
    }
    if let Some(client) = meant {
        return Ok(Target::Mounted(Box::new(client.clone())));
    }
    let located = locate::locate(&spec, search)?;
    match Client::of_pool(runtime, located.uuid)? {
        Some(client) => Ok(Target::Mounted(Box::new(client))),
        None => Ok(Target::Unmounted(Box::new(located))),
    }
}

/// The daemon behind a mount point, if `path` is one of ours and its daemon answers.
pub fn client_at(runtime: &Runtime, path: &Path) -> Result<Option<Client>> {
    let Some(mount) = mounts::mounted_at(&resolved(path)) else { return Ok(None) };
    if mount.kind != crate::fuse::mount::FILESYSTEM_TYPE {
        return Ok(None);
    }
    Ok(Client::all(runtime).into_iter().find(|client| client.info().device == mount.device))
}

/// An absolute path without symbolic links. What is mounted there is not asked: its daemon may be dead, or be us.
pub fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else { return absolute };
    let plain = std::fs::canonicalize(parent).map_or_else(|_| absolute.clone(), |parent| parent.join(name));
    if mounts::mounted_at(&plain).is_some() {
        return plain;
    }
    std::fs::canonicalize(&plain).unwrap_or(plain)
}

/// The one daemon whose pool is meant.
fn matching<'c>(clients: &'c [Client], spec: &Spec, text: &Path) -> Result<Option<&'c Client>> {
    let mut meant = clients.iter().filter(|client| {
        let info = client.info();
        match spec {
            Spec::Uuid(uuid) => Uuid::parse(&info.uuid) == Some(*uuid),
            Spec::Name(name) => info.name == *name,
            Spec::Path(_) => {
                let path = resolved(text);
                info.members.iter().any(|member| path.to_str() == Some(member))
            }
        }
    });
    match (meant.next(), meant.next()) {
        (Some(one), None) => Ok(Some(one)),
        (None, _) => Ok(None),
        (Some(_), Some(_)) => Err(Error::Usage(format!(
            "several mounted pools are called {}: say argosfs:UUID or a mount point",
            text.display()
        ))),
    }
}

/// How commands open pools that are not mounted.
pub fn open_options(read_only: bool) -> OpenOptions {
    OpenOptions::new(read_only, EngineChoice::Auto)
}

/// Performs an operation where the pool is. A pool opened for it is closed again before this returns.
pub fn perform(target: &Target, request: &Request, reply: &mut dyn Reply, output: Output) -> Result<Outcome> {
    match target {
        Target::Mounted(client) => client.call(request, reply),
        Target::Unmounted(located) => {
            let options = open_options(!request.writes());
            if let Request::ExportMeta { archived: true } = request {
                let (pool, notes) = open::open_pool(located, &options)?;
                notes.iter().for_each(|note| output.note(note));
                return service::export_archived(&pool, reply);
            }
            let opened = open::open(located, &options)?;
            // The status tells the same in its own words.
            if *request != Request::Status {
                opened.notes.iter().for_each(|note| output.note(note));
            }
            let service = PoolService::unmounted(Arc::clone(&opened.pool), Arc::clone(&opened.store), options);
            let outcome = service.serve(request, reply);
            if request.writes() {
                opened.store.meta().checkpoint()?;
            }
            outcome
        }
    }
}
