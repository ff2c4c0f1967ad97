//! Whole images, forged behind every checksum, mounted, read, written, checked and repaired: see `tests/forged`.
#![no_main]

#[path = "../../tests/forged/bound.rs"]
mod bound;
#[path = "../../tests/forged/home.rs"]
mod home;
#[path = "../../tests/forged/image.rs"]
mod image;
#[path = "../../tests/forged/life.rs"]
mod life;
#[path = "../../tests/forged/log.rs"]
mod log;
#[path = "../../tests/forged/mutation.rs"]
mod mutation;

#[global_allocator]
static ALLOCATOR: bound::Bounded = bound::Bounded;

thread_local! {
    static IMAGE: image::Image = image::Image::new();
}

libfuzzer_sys::fuzz_target!(init: bound::watch_panics(), |data: &[u8]| {
    let told = IMAGE.with(|image| life::live(image, data));
    let panics = bound::foreign_panics();
    if told.is_err() || !panics.is_empty() {
        eprintln!("{}\n{}", told.err().unwrap_or_default(), panics.join("\n"));
        std::process::abort();
    }
});
