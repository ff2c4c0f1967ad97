use super::kernel::Kernel;
use super::{Codec, Geometry};
use crate::base::{Entropy, Error, Prng};
use reed_solomon_erasure::galois_8::ReedSolomon;

fn geometry(k: u8, m: u8) -> Geometry {
    Geometry::new(k, m).unwrap()
}

fn random_shards(rng: &mut Prng, count: u8, length: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|_| {
            let mut shard = vec![0; length];
            rng.fill(&mut shard);
            shard
        })
        .collect()
}

/// Random data with its parity, all shards of one stripe.
fn stripe(codec: &Codec, rng: &mut Prng, length: usize) -> Vec<Vec<u8>> {
    let mut shards = random_shards(rng, codec.geometry().shards(), length);
    let (data, parity) = shards.split_at_mut(usize::from(codec.geometry().k()));
    let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    let mut parity: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
    codec.encode(&data, &mut parity).unwrap();
    shards
}

/// Rebuilds every shard that is not in `present`, which are taken in that order, and compares.
fn rebuild_others(codec: &Codec, shards: &[Vec<u8>], present: &[u8]) {
    let given: Vec<(u8, &[u8])> = present.iter().map(|&index| (index, shards[usize::from(index)].as_slice())).collect();
    let missing: Vec<u8> = (0..codec.geometry().shards()).filter(|index| !present.contains(index)).collect();
    let mut rebuilt = vec![vec![0xee; shards[0].len()]; missing.len()];
    let mut wanted: Vec<(u8, &mut [u8])> =
        missing.iter().zip(&mut rebuilt).map(|(&index, shard)| (index, shard.as_mut_slice())).collect();
    codec.reconstruct(&given, &mut wanted).unwrap();
    for (index, shard) in missing.iter().zip(&rebuilt) {
        assert!(*shard == shards[usize::from(*index)], "{}: shard {index} from {present:?}", codec.geometry());
    }
}

fn shuffled(rng: &mut Prng, count: u8) -> Vec<u8> {
    let mut order: Vec<u8> = (0..count).collect();
    for at in (1..order.len()).rev() {
        order.swap(at, rng.below(at as u64 + 1) as usize);
    }
    order
}

/// Encodes random data and compares with the oracle's parity.
fn compare_with_oracle(rng: &mut Prng, geometry: Geometry, kernel: &'static Kernel, longest: u64) {
    let length = 1 + rng.below(longest) as usize;
    let mut shards = stripe(&Codec::with_kernel(geometry, kernel), rng, length);
    let ours = shards.clone();
    let oracle = ReedSolomon::new(geometry.k().into(), geometry.m().into()).unwrap();
    oracle.encode(&mut shards).unwrap();
    assert!(shards == ours, "{geometry} on {} with {length} bytes", kernel.name());
}

#[test]
fn parity_is_that_of_the_oracle() {
    let mut rng = Prng::new(1);
    for (k, m) in (1..=10).flat_map(|k| (1..=4).map(move |m| (k, m))) {
        for kernel in Kernel::available() {
            compare_with_oracle(&mut rng, geometry(k, m), kernel, 700);
        }
    }
    for (k, m) in [(16, 6), (50, 20), (100, 30), (30, 225)] {
        compare_with_oracle(&mut rng, geometry(k, m), Kernel::best(), 150);
    }
}

#[test]
fn four_plus_two_survives_every_loss() {
    let codec = Codec::new(geometry(4, 2));
    let shards = stripe(&codec, &mut Prng::new(2), 4096);
    let patterns = (0u8..64).filter(|present| present.count_ones() >= 4);
    let mut seen = 0;
    for pattern in patterns {
        let present: Vec<u8> = (0..6).filter(|index| pattern >> index & 1 != 0).collect();
        rebuild_others(&codec, &shards, &present);
        seen += 1;
    }
    assert_eq!(seen, 15 + 6 + 1);
}

#[test]
fn any_k_shards_give_back_the_rest() {
    let mut rng = Prng::new(3);
    for round in 0..300 {
        let k = 1 + rng.below(if round % 20 == 0 { 120 } else { 12 }) as u8;
        let m = rng.below(if round % 20 == 0 { 60 } else { 6 }) as u8;
        let codec = Codec::new(geometry(k, m));
        let length = rng.below(500) as usize;
        let shards = stripe(&codec, &mut rng, length);
        let order = shuffled(&mut rng, k + m);
        rebuild_others(&codec, &shards, &order[..usize::from(k)]);
    }
}

#[test]
fn any_range_of_bytes_can_be_rebuilt_alone() {
    let mut rng = Prng::new(4);
    let codec = Codec::new(geometry(5, 3));
    let shards = stripe(&codec, &mut rng, 10_000);
    for _ in 0..50 {
        let from = rng.below(10_000) as usize;
        let to = from + rng.below(10_001 - from as u64) as usize;
        let present: Vec<(u8, &[u8])> =
            [7, 1, 2, 6, 4].map(|index| (index, &shards[usize::from(index)][from..to])).into();
        let (mut first, mut second) = (vec![0; to - from], vec![0; to - from]);
        codec.reconstruct(&present, &mut [(0, &mut first), (5, &mut second)]).unwrap();
        assert!(first == shards[0][from..to] && second == shards[5][from..to], "{from}..{to}");
    }
}

#[test]
fn parity_can_be_added_without_rewriting() {
    let mut rng = Prng::new(5);
    let wide = stripe(&Codec::new(geometry(6, 3)), &mut rng, 777);
    rebuild_others(&Codec::new(geometry(6, 3)), &wide, &[0, 1, 2, 3, 4, 5, 6, 7]);
    let mut narrow_parity = vec![vec![0; 777]; 2];
    let data: Vec<&[u8]> = wide[..6].iter().map(Vec::as_slice).collect();
    let mut parity: Vec<&mut [u8]> = narrow_parity.iter_mut().map(Vec::as_mut_slice).collect();
    Codec::new(geometry(6, 2)).encode(&data, &mut parity).unwrap();
    assert!(narrow_parity == wide[6..8]);
}

#[test]
fn mirrors_are_copies() {
    let codec = Codec::new(geometry(1, 2));
    let shards = stripe(&codec, &mut Prng::new(6), 1234);
    assert!(shards[1] == shards[0] && shards[2] == shards[0]);
    rebuild_others(&codec, &shards, &[2]);
}

#[test]
fn a_stripe_without_parity_is_only_its_data() {
    let codec = Codec::new(geometry(3, 0));
    codec.encode(&[b"a", b"b", b"c"], &mut []).unwrap();
    let mut copy = [0];
    codec.reconstruct(&[(2, b"c"), (0, b"a"), (1, b"b")], &mut [(1, &mut copy)]).unwrap();
    assert_eq!(&copy, b"b");
    assert!(matches!(codec.reconstruct(&[(2, b"c"), (0, b"a")], &mut [(1, &mut copy)]), Err(Error::Corrupt(_))));
}

#[test]
fn nothing_wanted_and_nothing_long_is_fine() {
    let codec = Codec::new(geometry(2, 1));
    codec.encode(&[&[], &[]], &mut [&mut []]).unwrap();
    codec.reconstruct(&[(2, &[]), (0, &[])], &mut [(1, &mut [])]).unwrap();
    codec.reconstruct(&[(2, &[1]), (0, &[2])], &mut []).unwrap();
}

#[test]
fn wrong_calls_are_errors_and_touch_nothing() {
    let codec = Codec::new(geometry(2, 1));
    let (a, b) = ([1u8; 8], [2u8; 8]);
    let mut out = [9u8; 8];
    let mut second = [9u8; 8];
    let invalid = |result| assert!(matches!(result, Err(Error::Invalid(_))), "{result:?}");

    invalid(codec.encode(&[&a], &mut [&mut out]));
    invalid(codec.encode(&[&a, &b, &b], &mut [&mut out]));
    invalid(codec.encode(&[&a, &b], &mut []));
    invalid(codec.encode(&[&a, &b], &mut [&mut out, &mut second]));
    invalid(codec.encode(&[&a, &b[..7]], &mut [&mut out]));
    invalid(codec.encode(&[&a, &b], &mut [&mut out[..7]]));

    invalid(codec.reconstruct(&[(0, &a), (0, &b)], &mut [(1, &mut out)]));
    invalid(codec.reconstruct(&[(0, &a), (3, &b)], &mut [(1, &mut out)]));
    invalid(codec.reconstruct(&[(0, &a), (255, &b)], &mut [(1, &mut out)]));
    invalid(codec.reconstruct(&[(0, &a), (2, &b)], &mut [(3, &mut out)]));
    invalid(codec.reconstruct(&[(0, &a), (2, &b[..7])], &mut [(1, &mut out)]));
    invalid(codec.reconstruct(&[(0, &a), (2, &b)], &mut [(1, &mut out[..7])]));

    let lost = codec.reconstruct(&[(0, &a)], &mut [(1, &mut out)]).unwrap_err();
    assert_eq!(lost.to_string(), "corrupt: 1 shards of a 2+1 stripe are left, 2 are needed");
    assert_eq!((out, second), ([9; 8], [9; 8]));
}
