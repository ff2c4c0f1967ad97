//! What a peer may send over the control socket.
#![no_main]

use std::io::Cursor;

use argosfs::control::frame::{self, FRAME_MAX};
use argosfs::control::protocol::Envelope;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut from = Cursor::new(data);
    while let Ok(Some((kind, payload))) = frame::read(&mut from) {
        assert!(payload.len() <= FRAME_MAX);
        let mut again = Vec::new();
        frame::write(&mut again, kind, &payload).expect("what came fits");
        if let Ok(envelope) = serde_json::from_slice::<Envelope>(&payload) {
            let text = serde_json::to_string(&envelope).expect("a request is JSON");
            assert_eq!(serde_json::from_str::<Envelope>(&text).expect("and back"), envelope);
        }
    }
});
