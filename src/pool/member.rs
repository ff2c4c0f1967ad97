//! The members of an open pool.

use std::sync::Arc;

use super::assembly::describe;
use crate::base::{DeviceId, Uuid};
use crate::device::Device;
use crate::format::label::{GroupLayout, MemberEntry, MemberState, PoolLabel};

/// A member as the open pool sees it; a value, not a handle: take a new one from [`super::Pool::state`] after changes.
#[derive(Clone)]
pub struct Member {
    pub id: DeviceId,
    pub uuid: Uuid,
    pub state: MemberState,
    /// There when the member is present and was not dropped.
    pub device: Option<Arc<dyn Device>>,
    /// 0 unknown, 1 hdd, 2 ssd, 3 nvme.
    pub class: u8,
    pub tier: u8,
    /// Placement weight in 1/1000 of what capacity gives; 0 while it is being replaced.
    pub weight_milli: u32,
    pub failure_domain: u64,
    pub size: u64,
    pub layout: GroupLayout,
    /// The epoch the member's own label carries.
    pub(super) epoch: Uuid,
    /// The pair of label copies to write first.
    pub(super) first_pair: usize,
}

impl Member {
    pub(super) fn of(entry: &MemberEntry) -> Member {
        Member {
            id: entry.id,
            uuid: entry.uuid,
            state: entry.state,
            device: None,
            class: entry.class,
            tier: entry.tier,
            weight_milli: entry.weight_milli,
            failure_domain: entry.failure_domain,
            size: entry.size,
            layout: entry.layout,
            epoch: entry.last_epoch,
            first_pair: 0,
        }
    }

    /// What a user calls it: the device's path, or its number when it is not there.
    pub fn name(&self) -> String {
        self.device.as_ref().map_or_else(|| format!("device {}", self.id), |device| device.name().to_owned())
    }

    /// Whether another member takes its place: it is to be emptied, or given up where it is not here, and removed.
    pub fn is_replaced(&self) -> bool {
        self.weight_milli == 0
    }

    /// Another member takes its place from now on, for good. Whether it is here and up to date stays as it is.
    pub(super) fn replace(&mut self) {
        self.weight_milli = 0;
        if self.state == MemberState::Active {
            self.state = MemberState::Replacing;
        }
    }

    /// Whether its metadata may be trusted: present and never absent since it was last resynchronised.
    pub fn is_current(&self) -> bool {
        self.device.is_some() && matches!(self.state, MemberState::Active | MemberState::Replacing)
    }

    /// Whether new data may go there.
    pub fn takes_data(&self) -> bool {
        self.device.is_some() && matches!(self.state, MemberState::Active | MemberState::Stale) && !self.is_replaced()
    }
}

/// What an open pool is made of, at one moment.
pub struct PoolState {
    /// The label all present members carry.
    pub label: PoolLabel,
    /// All members that were not removed, in order of their ids.
    pub members: Vec<Member>,
}

impl PoolState {
    /// The member with this id.
    pub fn member(&self, id: DeviceId) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    /// The device of a member that is present.
    pub fn device(&self, id: DeviceId) -> Option<&Arc<dyn Device>> {
        self.member(id).and_then(|member| member.device.as_ref())
    }

    /// Members that are present.
    pub fn present(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.device.is_some())
    }

    /// The members that are here and hold the current metadata.
    pub fn metadata_holders(&self) -> impl Iterator<Item = DeviceId> {
        let current = self.label.meta.replicas.iter().filter(|replica| !replica.stale);
        current.map(|replica| DeviceId(replica.device)).filter(|id| self.member(*id).is_some_and(Member::is_current))
    }

    /// Whether the metadata can be opened with the members that are here, if there is any; says who is lacking.
    pub(super) fn check_metadata(&self) -> Result<(), String> {
        let label = &self.label;
        if label.meta.replicas.is_empty() || self.metadata_holders().next().is_some() {
            return Ok(());
        }
        let current = label.meta.replicas.iter().filter(|replica| !replica.stale);
        let absent = current.map(|replica| DeviceId(replica.device)).filter(|id| self.device(*id).is_none());
        let absent: Vec<String> = absent.filter_map(|id| label.member(id)).map(describe).collect();
        let whom = match &absent[..] {
            [] => "one of those last mounted together".to_owned(),
            absent => absent.join(" or "),
        };
        Err(format!("no device of pool {} that is here holds its current metadata: bring back {whom}", label.name))
    }

    /// How many more members may be lost; negative when too many are.
    pub fn can_lose(&self) -> i32 {
        let absent = self.members.iter().filter(|member| member.device.is_none()).count();
        i32::from(self.label.settings.geometry.m) - absent as i32
    }
}
