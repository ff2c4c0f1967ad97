//! The long operations, one file each.

mod damage;
mod export;
mod fsck;
mod inject;
mod maintain;
mod recover;
mod replace;
mod trim;

pub use damage::damage;
pub use export::{export, export_archived};
pub use fsck::{FsckMode, Opening, fsck, fsck_opened, fsck_unmounted};
pub use inject::inject;
pub use maintain::{rebuild, scrub};
pub use recover::{import, import_dry_run, recover};
pub use replace::replace;
pub use trim::trim;
