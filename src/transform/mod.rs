//! What happens to bytes between a file and its stripes: compression now, encryption later. Pure.
//! Above: `store` and `check` choose what to transform. Below: `base` only.

pub mod compress;
