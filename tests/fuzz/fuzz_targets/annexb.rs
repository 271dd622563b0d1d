//! Any bytes under any cut: no panic, and the same events as in one piece.

#![no_main]

use kvs_producer_app::codec::{Event, Splitter};
use kvs_producer_app::frame::Codec;
use libfuzzer_sys::fuzz_target;

const MAX_UNIT_BYTES: usize = 4096;

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (codec, cut, stream) = input;
    let codec = [None, Some(Codec::H264), Some(Codec::H265)][usize::from(codec) % 3];
    let whole = events(codec, stream, stream.len().max(1));
    assert_eq!(events(codec, stream, usize::from(cut).max(1)), whole);
});

/// What was found, units as their bytes; ends at the first error.
fn events(codec: Option<Codec>, stream: &[u8], cut: usize) -> Vec<(Event, Vec<u8>)> {
    let mut splitter = Splitter::new(codec, MAX_UNIT_BYTES);
    let mut found = Vec::new();
    let mut portions = stream.chunks(cut);
    loop {
        let portion = portions.next();
        match portion {
            Some(portion) => splitter.push(portion),
            None => splitter.finish(),
        }
        loop {
            match splitter.advance() {
                Ok(Some(event @ Event::Unit { .. })) => {
                    assert!(splitter.unit().len() <= MAX_UNIT_BYTES);
                    found.push((event, splitter.unit().to_vec()));
                }
                Ok(Some(event)) => found.push((event, Vec::new())),
                Ok(None) => break,
                Err(_) => return found,
            }
        }
        if portion.is_none() {
            return found;
        }
    }
}
