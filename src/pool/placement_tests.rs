use super::*;
use crate::base::Prng;

fn geometry(k: u8, m: u8) -> Geometry {
    Geometry::new(k, m).unwrap()
}

fn targets(free: &[u64]) -> Vec<Target> {
    let target = |(at, free): (usize, &u64)| Target {
        device: DeviceId(at as u16),
        domain: at as u64,
        free: *free,
        preference: 1.0,
    };
    free.iter().enumerate().map(target).collect()
}

/// Writes stripes until nothing fits; returns the data blocks written.
fn fill(geometry: Geometry, shard_blocks: u32, targets: &mut [Target], prng: &mut Prng) -> u64 {
    let mut written = 0;
    let mut next = prng.next() >> 8;
    while let Some(choice) = choose(StripeId(next), geometry, shard_blocks, targets) {
        next += 1;
        let mut domains = Vec::new();
        for device in &choice.devices {
            let target = targets.iter_mut().find(|target| target.device == *device).unwrap();
            assert!(!domains.contains(&target.domain), "two shards in one failure domain");
            domains.push(target.domain);
            target.free = target.free.checked_sub(u64::from(choice.shard_blocks) + 1).expect("the shard fits");
        }
        assert_eq!(choice.geometry.m(), geometry.m());
        assert!(choice.geometry.k() <= geometry.k());
        assert!(choice.devices.len() <= usize::from(choice.geometry.shards()));
        written += u64::from(choice.geometry.k()) * u64::from(choice.shard_blocks);
    }
    written
}

fn check(geometry: Geometry, shard_blocks: u32, mut targets: Vec<Target>, prng: &mut Prng, what: &str) {
    let before = targets.clone();
    let free: Vec<u64> = domains(&targets).iter().map(|domain| domain.free).collect();
    let shape = Shape::of(geometry, free.len()).unwrap();
    let shard = f64::from(shard_blocks);
    let theory = bound(&free, shape) * shard / (shard + 1.0);
    let promised = capacity(geometry, shard_blocks, &targets);
    let written = fill(geometry, shard_blocks, &mut targets, prng);
    let text = format!("{what}: {geometry} {shard_blocks} on {before:?}: {written} of {theory}, promised {promised}");
    assert!(written >= promised, "promised too much: {text}");
    assert!(promised as f64 >= 0.97 * theory - f64::from(4 * shard_blocks), "promised too little: {text}");
    assert!(written as f64 <= theory * 1.0001 + 1.0, "more than is possible: {text}");
    assert!(written as f64 >= 0.98 * theory - f64::from(shard_blocks), "not filled: {text}");
}

#[test]
fn random_unequal_devices_fill_to_the_bound_and_no_less_than_promised() {
    for seed in 0..400 {
        let mut prng = Prng::new(seed);
        let count = 1 + prng.below(14) as usize;
        let m = prng.below(4.min(count as u64)) as u8;
        let k = 1 + prng.below(8) as u8;
        let shard_blocks = [16, 64, 128, 128, 256][prng.below(5) as usize];
        let smallest = u64::from(shard_blocks) * 60;
        let spread = [2, 4, 20, 60][prng.below(4) as usize];
        let free: Vec<u64> = (0..count).map(|_| smallest + prng.below(smallest * spread)).collect();
        check(geometry(k, m), shard_blocks, targets(&free), &mut prng, &format!("seed {seed}"));
    }
}

#[test]
fn well_known_shapes_fill() {
    let mut prng = Prng::new(5);
    let g = 262_144; // 1 GiB of blocks
    let cases: &[(u8, u8, &[u64])] = &[
        (1, 1, &[g, g]),
        (1, 1, &[g, g, 2 * g]),
        (2, 1, &[g / 4, g / 4, 4 * g, 4 * g]),
        (2, 2, &[g, 2 * g, 3 * g, 4 * g]),
        (4, 2, &[g; 6]),
        (4, 2, &[g, g, g, g, 3 * g, 3 * g, 3 * g]),
        (4, 2, &[g / 2, g / 2, g / 2, g / 2, g / 2, g / 2, 6 * g]),
        (8, 3, &[g / 4; 24]),
        (1, 0, &[g]),
    ];
    for (k, m, free) in cases {
        check(geometry(*k, *m), 128, targets(free), &mut prng, "case");
    }
}

#[test]
fn devices_of_one_failure_domain_never_share_a_stripe() {
    for seed in 0..60 {
        let mut prng = Prng::new(seed);
        let mut targets = targets(&(0..12).map(|_| 8_000 + prng.below(40_000)).collect::<Vec<_>>());
        for target in &mut targets {
            target.domain = prng.below(7);
        }
        // `fill` asserts it; capacity counts domains, whose devices share the work.
        let promised = capacity(geometry(3, 2), 64, &targets);
        let written = fill(geometry(3, 2), 64, &mut targets, &mut prng);
        assert!(written >= promised, "seed {seed}: {written} < {promised}");
    }
}

#[test]
fn fewer_domains_make_narrower_stripes_and_then_degraded_ones() {
    let stripe = StripeId(7);
    let shape = |count: usize| {
        let choice = choose(stripe, geometry(4, 2), 128, &targets(&vec![10_000; count]))?;
        Some((choice.geometry.k(), choice.geometry.m(), choice.devices.len()))
    };
    assert_eq!(shape(6), Some((4, 2, 6)));
    assert_eq!(shape(5), Some((3, 2, 5)));
    assert_eq!(shape(3), Some((1, 2, 3)));
    // Two devices are left of a pool that may lose two: one copy more than nothing.
    assert_eq!(shape(2), Some((1, 2, 2)));
    assert_eq!(shape(1), Some((1, 2, 1)));
    assert_eq!(shape(0), None);
    // But devices that are only full are no reason for less redundancy.
    assert_eq!(choose(stripe, geometry(4, 2), 128, &targets(&[10_000, 10_000, 0, 0, 0, 0])), None);
    assert_eq!(capacity(geometry(4, 2), 128, &targets(&[10_000, 10_000, 0, 0, 0, 0])), 0);
}

#[test]
fn the_last_space_goes_to_smaller_shards() {
    let choice = choose(StripeId(1), geometry(4, 2), 128, &targets(&[50; 6])).unwrap();
    assert_eq!((choice.shard_blocks, choice.devices.len()), (49, 6));
    assert_eq!(choose(StripeId(1), geometry(4, 2), 128, &targets(&[8; 6])), None);
    assert_eq!(choose(StripeId(1), geometry(4, 2), 4, &targets(&[8; 6])).unwrap().shard_blocks, 4);
}

#[test]
fn a_preferred_device_gets_more() {
    let mut targets = targets(&[1_000_000; 12]);
    targets[3].preference = 4.0;
    let mut count = [0_i64; 12];
    for stripe in 0..4_000 {
        for device in choose(StripeId(stripe), geometry(2, 1), 128, &targets).unwrap().devices {
            count[usize::from(device.0)] += 1;
        }
    }
    let others = (12_000 - count[3]) / 11;
    assert!(count[3] > 2 * others, "{count:?}");
    for (at, count) in count.iter().enumerate().filter(|(at, _)| *at != 3) {
        assert!((count - others).abs() * 5 < others, "device {at}: {count} against {others}");
    }
}

#[test]
fn one_more_shard_goes_to_another_domain() {
    let mut targets = targets(&[1_000, 1_000, 1_000, 1_000]);
    targets[3].domain = 0;
    let taken = [DeviceId(0), DeviceId(1)];
    assert_eq!(choose_one(StripeId(1), 128, &targets, &taken), Some(DeviceId(2)));
    targets[2].free = 128;
    assert_eq!(choose_one(StripeId(1), 128, &targets, &taken), None);
}
