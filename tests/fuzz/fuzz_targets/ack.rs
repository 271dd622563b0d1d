//! Any answer under any cut: no panic, and the same acknowledgements as in one piece.

#![no_main]

use kvs_producer_app::kvs::ack::AckParser;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (cut, bytes) = input;
    let read = |cut: usize| {
        let mut parser = AckParser::default();
        let mut found = Vec::new();
        for portion in bytes.chunks(cut) {
            parser.push(portion, |ack| found.push(ack));
        }
        found
    };
    assert_eq!(read(usize::from(cut).max(1)), read(bytes.len().max(1)));
});
