//! Which devices a stripe goes to, and how much fits on a set of unequal devices. Pure.
//!
//! With `f` free blocks in each failure domain, stripes of at most `w = k + m` shards on distinct domains and `t` blocks
//! of stripes in total, at most `min(w t, sum of min(f, t))` blocks of shards can be placed (each domain gives a stripe
//! one shard), of which `m t` are parity. The rest is data; it grows with `t` up to a certain size, where it is the
//! capacity. The bound is reached when every domain with `f >= t` takes part in every stripe (McNaughton's rule for
//! preemptive schedules), so [`choose`] forces those in and leaves the others to weighted rendezvous hashing.

use crate::base::rng::mix64;
use crate::base::{DeviceId, StripeId};
use crate::erasure::Geometry;

/// A device that may take shards.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Target {
    pub device: DeviceId,
    pub domain: u64,
    /// Blocks that can be reserved on it now.
    pub free: u64,
    /// How gladly it is used beside what its free space says: class, tier, health, latency and NUMA distance go in
    /// here; 1.0 is neutral. It shifts choices only as far as the pool can still be filled.
    pub preference: f64,
}

/// Where a stripe goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    pub geometry: Geometry,
    /// Payload blocks per shard.
    pub shard_blocks: u32,
    /// The device of each shard, in order. Shorter than the geometry when too few failure domains are there: the last
    /// parity shards are not written, and the stripe is degraded from birth.
    pub devices: Vec<DeviceId>,
}

/// Shards smaller than this are made only when asked for.
const SMALLEST_SHARD: u32 = 8;

/// Chooses devices for a stripe: as wide as the geometry where possible, narrower (less data, the same parity) where
/// not. `targets` are all devices that take data, full ones too: they count for how many failure domains there are.
/// `None` when nothing fits at the redundancy these devices allow.
pub fn choose(stripe: StripeId, geometry: Geometry, shard_blocks: u32, targets: &[Target]) -> Option<Choice> {
    let domains = domains(targets);
    let shape = Shape::of(geometry, domains.len())?;
    let free: Vec<u64> = domains.iter().map(|domain| domain.free).collect();
    let horizon = horizon(&free, shape);
    // A shard has a header block. What is left at the very end goes into one last, smaller stripe.
    let shard = shard_blocks.min((horizon as u32).saturating_sub(1));
    if shard < shard_blocks.min(SMALLEST_SHARD) {
        return None;
    }
    let need = u64::from(shard) + 1;

    let slack = (2 * need) as f64 + horizon / 64.0;
    let mut open: Vec<(bool, f64, &Domain)> = domains
        .iter()
        .filter(|domain| domain.roomiest >= need)
        .map(|domain| (domain.free as f64 + slack >= horizon, domain.score(stripe), domain))
        .collect();
    // Those that must take part first, the fullest of them last; then by rendezvous.
    open.sort_by(|a, b| {
        let forced = b.0.cmp(&a.0);
        let order = if a.0 && b.0 { b.2.free.cmp(&a.2.free) } else { a.1.total_cmp(&b.1) };
        forced.then(order).then(a.1.total_cmp(&b.1)).then(a.2.id.cmp(&b.2.id))
    });
    if open.len() < shape.narrowest {
        return None;
    }
    open.truncate(shape.widest);
    let mut devices: Vec<DeviceId> = Vec::with_capacity(open.len());
    for (_, _, domain) in &open {
        devices.push(domain.pick(stripe, need)?);
    }
    // Which of them gets data and which parity changes from stripe to stripe.
    devices.sort_by_key(|device| mix64(mix64(stripe.0 ^ 0x70_6172) ^ u64::from(device.0)));
    let k = (devices.len() - shape.parity) as u8;
    let geometry = Geometry::new(k, geometry.m()).ok()?;
    Some(Choice { geometry, shard_blocks: shard, devices })
}

/// Chooses a device for one more shard of a stripe, in a failure domain that none of `taken` is in.
pub fn choose_one(stripe: StripeId, shard_blocks: u32, targets: &[Target], taken: &[DeviceId]) -> Option<DeviceId> {
    let used: Vec<u64> = targets.iter().filter(|t| taken.contains(&t.device)).map(|t| t.domain).collect();
    let left: Vec<Target> = targets.iter().filter(|t| !used.contains(&t.domain)).copied().collect();
    let need = u64::from(shard_blocks) + 1;
    let domains = domains(&left);
    let fitting = domains.iter().filter(|domain| domain.roomiest >= need);
    let best = fitting.min_by(|a, b| a.score(stripe).total_cmp(&b.score(stripe)))?;
    best.pick(stripe, need)
}

/// Data blocks that can really be written to the targets at this geometry, as far as [`choose`] gets: a little below the
/// theoretical bound.
pub fn capacity(geometry: Geometry, shard_blocks: u32, targets: &[Target]) -> u64 {
    let free: Vec<u64> = domains(targets).iter().map(|domain| domain.free).collect();
    let Some(shape) = Shape::of(geometry, free.len()) else { return 0 };
    let bound = bound(&free, shape);
    let shard = f64::from(shard_blocks);
    // One block in each shard is its header; and the last stripes do not come out even.
    let rest = (shape.widest * 2) as f64 * (shard + 1.0).min(bound / 256.0);
    (bound * shard / (shard + 1.0) * (1.0 - 1.0 / 512.0) - rest).max(0.0) as u64
}

/// How wide stripes may be on so many failure domains.
#[derive(Clone, Copy, Debug)]
struct Shape {
    widest: usize,
    narrowest: usize,
    /// Parity shards that are written: all of them, or one less than there are domains.
    parity: usize,
}

impl Shape {
    fn of(geometry: Geometry, domains: usize) -> Option<Shape> {
        let parity = usize::from(geometry.m()).min(domains.checked_sub(1)?);
        Some(Shape { widest: usize::from(geometry.shards()).min(domains), narrowest: parity + 1, parity })
    }
}

/// The number of blocks of stripes (each with one block of each of its shards) that gives the most data.
fn horizon(free: &[u64], shape: Shape) -> f64 {
    let mut sorted: Vec<u64> = free.to_vec();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    // At full width: the largest t with sum of min(f, t) >= w t. The `big` largest domains have more than t.
    let mut rest: f64 = sorted.iter().map(|f| *f as f64).sum();
    let mut full = 0.0;
    for big in 0..shape.widest {
        let t = rest / (shape.widest - big) as f64;
        let biggest = sorted.get(big).map_or(0.0, |f| *f as f64);
        if biggest <= t {
            full = t;
            break;
        }
        rest -= biggest;
    }
    // Narrower stripes go on while more domains than there are parity shards have space.
    let narrow = sorted.get(shape.parity).map_or(0.0, |f| *f as f64);
    full.max(narrow)
}

/// The most data blocks, headers included.
fn bound(free: &[u64], shape: Shape) -> f64 {
    let t = horizon(free, shape);
    let shards: f64 = free.iter().map(|f| (*f as f64).min(t)).sum();
    (shards.min(t * shape.widest as f64) - t * shape.parity as f64).max(0.0)
}

/// The targets of one failure domain.
struct Domain<'a> {
    id: u64,
    free: u64,
    /// The most free space of one of its devices.
    roomiest: u64,
    preference: f64,
    targets: Vec<&'a Target>,
}

fn domains(targets: &[Target]) -> Vec<Domain<'_>> {
    let mut domains: Vec<Domain<'_>> = Vec::new();
    for target in targets {
        let at = domains.iter().position(|domain| domain.id == target.domain).unwrap_or_else(|| {
            domains.push(Domain { id: target.domain, free: 0, roomiest: 0, preference: 0.0, targets: Vec::new() });
            domains.len() - 1
        });
        let domain = &mut domains[at];
        domain.free += target.free;
        domain.roomiest = domain.roomiest.max(target.free);
        domain.preference = domain.preference.max(target.preference);
        domain.targets.push(target);
    }
    domains
}

impl Domain<'_> {
    fn score(&self, stripe: StripeId) -> f64 {
        race(stripe, self.id, self.free as f64 * self.preference)
    }

    /// One of its devices with room for a shard.
    fn pick(&self, stripe: StripeId, need: u64) -> Option<DeviceId> {
        let fitting = self.targets.iter().filter(|target| target.free >= need);
        let score =
            |target: &&&Target| race(stripe, !u64::from(target.device.0), target.free as f64 * target.preference);
        fitting.min_by(|a, b| score(a).total_cmp(&score(b))).map(|target| target.device)
    }
}

/// Weighted rendezvous hashing (Wang and Ravishankar 2014): the smallest wins, in proportion to the weights.
fn race(stripe: StripeId, id: u64, weight: f64) -> f64 {
    let hash = mix64(mix64(stripe.0.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ mix64(id));
    let uniform = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -uniform.ln() / weight.max(f64::MIN_POSITIVE)
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
