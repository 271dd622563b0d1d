//! Any access units in a row: no panic, and payloads as long as they say.

#![no_main]

use kvs_producer_app::codec::{Parser, Unit, h265, picture_info};
use kvs_producer_app::frame::{Codec, Payload};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|units: Vec<&[u8]>| {
    let mut parser = Parser::new(Codec::H265);
    for unit in units {
        let _ = h265::Sps::parse(unit);
        let _ = picture_info(Codec::H265, unit);
        if let Ok(Unit::Picture(picture)) = parser.parse(unit) {
            let mut len = 0;
            picture.for_each_part(&mut |part| len += part.len());
            assert_eq!(len, picture.len());
        }
    }
});
