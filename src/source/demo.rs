//! The built-in clip, played in real time for ever: something to stream where there is no camera.

use std::ops::Range;
use std::time::Duration;

use super::{Error, Packet, Read, Source, Wait};
use crate::clock::Clock;
use crate::codec::{Event, FrameRate, Splitter};
use crate::frame::Codec;

/// ffmpeg's test pattern with a running frame number, 250 frames of 640x360 in closed GOPs of 50:
///
/// ```text
/// ffmpeg -f lavfi -i testsrc2=size=640x360:rate=25 -frames:v 250
///   -vf "drawtext=font=monospace:text='frame %{n}':fontsize=48:fontcolor=white:box=1:boxborderw=12:boxcolor=black
///        :x=(w-tw)/2:y=h-th-24"
///   -pix_fmt yuv420p -c:v libx264 -preset veryslow -profile:v high -bf 0
///   -g 50 -keyint_min 50 -sc_threshold 0 -flags +cgop -crf 38 -threads 1
///   -bsf:v filter_units=remove_types=6 -f h264 demo.h264
/// ```
const CLIP: &[u8] = include_bytes!("../../tests/data/demo.h264");

const CODEC: Codec = Codec::H264;

/// A [`Source`] that plays the clip. The first frame is due at once, and each one after it 40 ms later to the nanosecond.
#[derive(Debug)]
pub struct Demo {
    clock: Clock,
    /// The clip's access units.
    units: Vec<Range<usize>>,
    start: Option<Duration>,
    /// Frames handed on.
    played: u64,
}

impl Demo {
    /// A clip that begins with the first read.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            units: units(),
            start: None,
            played: 0,
        }
    }
}

/// Where the access units of the clip stand.
fn units() -> Vec<Range<usize>> {
    let mut splitter = Splitter::new(Some(CODEC), CLIP.len());
    splitter.push(CLIP);
    splitter.finish();
    let mut units = Vec::new();
    let mut end = 0;
    while let Ok(Some(Event::Unit { .. })) = splitter.advance() {
        let start = end;
        end += splitter.unit().len();
        units.push(start..end);
    }
    units
}

impl Source for Demo {
    fn describe(&self) -> String {
        format!(
            "demo (built-in clip): {CODEC} 640x360 at {}",
            FrameRate::FPS_25
        )
    }

    fn read(&mut self, wait: Wait<'_>) -> Result<Read<'_>, Error> {
        let now = self.clock.monotonic();
        let at = *self.start.get_or_insert(now) + FrameRate::FPS_25.time_of(self.played);
        wait.sleep(at.saturating_sub(now));
        if self.clock.monotonic() < at {
            return Ok(Read::Nothing);
        }
        let next = usize::try_from(self.played % self.units.len() as u64).unwrap_or(0);
        self.played += 1;
        Ok(Read::Packet(Packet {
            codec: CODEC,
            data: &CLIP[self.units[next].clone()],
            at,
            discontinuity: false,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Parser, Unit};
    use crate::frame::Dimensions;

    #[test]
    fn the_clip_is_small_and_all_of_it_decodes() {
        assert!(CLIP.len() <= 200_000);
        let units = units();
        assert_eq!(units.len(), 250);
        assert_eq!(units[249].end, CLIP.len());
        let mut parser = Parser::new(CODEC);
        for (index, unit) in units.into_iter().enumerate() {
            let Ok(Unit::Picture(unit)) = parser.parse(&CLIP[unit]) else {
                panic!("frame {index} is no picture")
            };
            assert_eq!(unit.key(), index % 50 == 0);
            if let Some(track) = unit.track() {
                let size = Dimensions {
                    width: 640,
                    height: 360,
                };
                assert_eq!(track.dimensions, Some(size));
            }
        }
    }

    fn read(demo: &mut Demo) -> (Duration, Vec<u8>) {
        match demo.read(Wait::briefly()) {
            Ok(Read::Packet(packet)) => (packet.at, packet.data.to_vec()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn times_are_periodic_and_kept_also_where_the_clip_begins_anew() {
        let mut demo = Demo::new(Clock);
        let (start, first) = read(&mut demo);
        let (second, _) = read(&mut demo);
        assert_eq!(second, start + Duration::from_millis(40));
        assert!(Clock.monotonic() >= second);

        // Ten seconds on, as if they had been played.
        let start = start
            .checked_sub(Duration::from_secs(10))
            .expect("up for longer");
        demo.start = Some(start);
        demo.played = 249;
        for (index, is_first) in [(249, false), (250, true), (251, false)] {
            let (at, data) = read(&mut demo);
            assert_eq!(at, start + Duration::from_millis(40 * index));
            assert_eq!(data == first, is_first);
        }
    }
}
