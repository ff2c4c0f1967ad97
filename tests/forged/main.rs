//! Images that somebody forged: a whole pool in which labels, headers and payloads of shards, rows, log entries and pages of the
//! database say anything at all, with every checksum over them right. It is mounted, read, written, checked, repaired and
//! exported. Nothing panics but the database, and that is caught; nothing goes on forever or takes memory without bound;
//! and what a repair says to be clean stays clean.
//!
//! `fuzz/targets/image.rs` does the same with a fuzzer's bytes.

mod bound;
mod home;
mod image;
mod life;
mod log;
mod mutation;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use argosfs::base::rng::mix64;
use argosfs::base::{Entropy, Prng};

use image::Image;

#[global_allocator]
static ALLOCATOR: bound::Bounded = bound::Bounded;

/// Tries one image; says what is wrong, panics included.
fn try_image(image: &Image, bytes: &[u8]) -> Result<(), String> {
    bound::watch_panics();
    let told = catch_unwind(AssertUnwindSafe(|| life::live(image, bytes)));
    let told = told.unwrap_or_else(|_| Err("it panicked".to_owned()));
    match bound::foreign_panics() {
        panics if panics.is_empty() => told,
        panics => Err(panics.join("\n")),
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// What is found in forged images comes of the forging.
#[test]
fn the_image_itself_is_clean() {
    assert_eq!(life::level(&Image::new().world), 0);
}

/// What the fuzzer begins with, and what it found once.
#[test]
fn kept_images_are_survived() {
    let image = Image::new();
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/image");
    let mut paths: Vec<_> =
        std::fs::read_dir(seeds).expect("seeds are kept").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    for path in paths {
        let bytes = std::fs::read(&path).expect("a seed can be read");
        try_image(&image, &bytes).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    }
}

/// `ARGOSFS_SEED` and `ARGOSFS_SEEDS` choose others.
#[test]
fn images_forged_by_chance_are_survived() {
    let image = Image::new();
    let first = number("ARGOSFS_SEED", 0);
    for seed in first..first + number("ARGOSFS_SEEDS", 100) {
        let mut prng = Prng::new(mix64(seed));
        let mut bytes = vec![0; 1 + prng.below(60) as usize];
        prng.fill(&mut bytes);
        try_image(&image, &bytes).unwrap_or_else(|why| panic!("ARGOSFS_SEED={seed}: {why}\n{bytes:?}"));
    }
}

/// What is forged is really seen by those who open the image: each kind of mutation makes a difference somewhere.
#[test]
fn every_kind_of_mutation_gets_past_the_checksums() {
    let image = Image::new();
    let before = image.world.fork();
    for kind in 0..mutation::KINDS {
        let mut seen = 0;
        for at in 0..40u8 {
            let bytes = [0, kind, at.wrapping_mul(7), at, at.wrapping_mul(3), at % 5, 0x21, 0x55, 0xaa];
            let Some(forged) = mutation::forge(&image, &bytes[1..]) else { continue };
            seen += u32::from(forged.fingerprint(&before) != before.fingerprint(&before));
        }
        assert!(seen >= 20, "kind {kind} changed {seen} of 40 images");
    }
}
