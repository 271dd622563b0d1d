//! `kvsProducerApp devices`: what every node is, what it can do, and whether it can be used.

use std::fmt;
use std::path::PathBuf;

use serde_json::{Value, json};
use v4l::FourCC;

use super::abi::{self, Interval, Size};
use super::choice::Seen;
use super::control::{self, Control};
use super::node::Node;
use super::{camera, settings, survey, words};
use crate::frame::Codec;

/// All that is known of a node.
#[derive(Debug)]
pub struct Device {
    path: PathBuf,
    driver: String,
    card: String,
    bus: String,
    links: Vec<PathBuf>,
    formats: Vec<Format>,
    controls: Vec<(&'static str, Control, Option<i32>)>,
    /// `Err`: why it cannot be used, and what to do.
    usable: Result<Codec, String>,
    /// Who has it open.
    holders: Vec<String>,
}

#[derive(Debug)]
struct Format {
    fourcc: FourCC,
    /// With the intervals of each.
    sizes: Vec<(Size, Vec<Interval>)>,
}

/// Every video node of this machine, in the order of their numbers.
pub fn all() -> Vec<Device> {
    survey::nodes_in_use().into_iter().map(Device::of).collect()
}

impl Device {
    fn of(seen: Seen) -> Self {
        let usable = seen.verdict(None).map_err(|refusal| refusal.reason);
        let mut device = Self {
            driver: String::new(),
            card: String::new(),
            bus: String::new(),
            links: seen.links,
            formats: Vec::new(),
            controls: Vec::new(),
            usable,
            holders: words::holders(&seen.path.display().to_string()),
            path: seen.path,
        };
        if let (Ok(answers), Ok(node)) = (seen.answers, Node::open(&device.path)) {
            device.driver = answers.capabilities.driver;
            device.card = answers.capabilities.card;
            device.bus = answers.capabilities.bus;
            let formats = answers.formats.into_iter();
            device.formats = formats.map(|fourcc| Format::of(&node, fourcc)).collect();
            let control = |(name, id)| {
                let control = control::query(&node, id)?;
                Some((name, control, control::get(&node, id).ok()))
            };
            device.controls = settings::SHOWN.into_iter().filter_map(control).collect();
        }
        device
    }

    /// What stays the same when it gets another number: udev's name for it, else where it is plugged in.
    fn identity(&self) -> String {
        let link = self.links.first().map(|link| link.display().to_string());
        link.unwrap_or_else(|| format!("{}, {}", self.bus, self.card))
    }

    /// The node as a JSON object. Rates are frames a second.
    pub fn json(&self) -> Value {
        let strings = |links: &[PathBuf]| -> Vec<String> {
            links
                .iter()
                .map(|link| link.display().to_string())
                .collect()
        };
        json!({
            "path": self.path.display().to_string(),
            "card": self.card,
            "driver": self.driver,
            "bus": self.bus,
            "identity": self.identity(),
            "links": strings(&self.links),
            "formats": self.formats.iter().map(Format::json).collect::<Vec<_>>(),
            "controls": self.controls.iter().map(|(name, control, value)| ((*name).to_owned(), json!({
                "value": value,
                "min": control.least,
                "max": control.most,
                "default": control.default,
            }))).collect::<serde_json::Map<_, _>>(),
            "usable": self.usable.is_ok(),
            "codec": self.usable.as_ref().ok().map(ToString::to_string),
            "why_not": self.usable.as_ref().err(),
            "held_by": self.holders,
        })
    }
}

impl Format {
    fn of(node: &Node, fourcc: FourCC) -> Self {
        let sizes = abi::sizes(node, fourcc).into_iter().map(|size| {
            let (Size::Exactly { width, height }
            | Size::Between {
                most: (width, height),
                ..
            }) = size;
            (size, abi::intervals(node, fourcc, (width, height)))
        });
        Self {
            fourcc,
            sizes: sizes.collect(),
        }
    }

    fn json(&self) -> Value {
        let rate = |interval: &Interval| interval.fps();
        let size = |(size, intervals): &(Size, Vec<Interval>)| {
            let rates: Vec<_> = intervals.iter().map(rate).collect();
            match *size {
                Size::Exactly { width, height } => {
                    json!({ "width": width, "height": height, "fps": rates })
                }
                Size::Between { least, most } => json!({
                    "width": [least.0, most.0], "height": [least.1, most.1], "fps": rates,
                }),
            }
        };
        json!({
            "fourcc": words::name(self.fourcc),
            "sizes": self.sizes.iter().map(size).collect::<Vec<_>>(),
        })
    }
}

/// As long lists are told: the first, and how many more.
const MOST_SIZES: usize = 8;

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<4}", words::name(self.fourcc))?;
        for (size, intervals) in self.sizes.iter().take(MOST_SIZES) {
            match size {
                Size::Exactly { width, height } => write!(f, "  {width}x{height}")?,
                Size::Between { least, most } => {
                    write!(f, "  {}x{} to {}x{}", least.0, least.1, most.0, most.1)?;
                }
            }
            for (nth, interval) in intervals.iter().enumerate() {
                let head = if nth == 0 { " at " } else { ", " };
                write!(f, "{head}{}", (interval.fps() * 100.0).round() / 100.0)?;
            }
        }
        match self.sizes.len().saturating_sub(MOST_SIZES) {
            0 => Ok(()),
            more => write!(f, "  and {more} more"),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}  {}", self.path.display(), self.card)?;
        if !self.driver.is_empty() {
            writeln!(f, "  driver    {}, at {}", self.driver, self.bus)?;
            writeln!(f, "  identity  {}", self.identity())?;
        }
        let (encoded, raw): (Vec<_>, Vec<_>) = self
            .formats
            .iter()
            .partition(|format| camera::codec(format.fourcc).is_some());
        for (nth, format) in encoded.iter().enumerate() {
            let head = if nth == 0 { "formats" } else { "" };
            writeln!(f, "  {head:<8}  {format}")?;
        }
        // No stream is made of these, so that their sizes are of no interest here.
        if !raw.is_empty() {
            let names: Vec<_> = raw.iter().map(|format| format.fourcc).collect();
            writeln!(f, "  not used  {}", words::names(&names))?;
        }
        for (nth, (name, control, value)) in self.controls.iter().enumerate() {
            let head = if nth == 0 { "controls" } else { "" };
            write!(f, "  {head:<8}  {name}")?;
            if let Some(value) = value {
                write!(f, " {value}")?;
            }
            writeln!(f, " ({} to {})", control.least, control.most)?;
        }
        match &self.usable {
            Ok(codec) => writeln!(f, "  usable    yes: {codec}")?,
            Err(why) => writeln!(f, "  usable    no: {why}")?,
        }
        if !self.holders.is_empty() {
            writeln!(f, "  held by   {}", self.holders.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device {
        let interval = |numerator, denominator| Interval {
            numerator,
            denominator,
        };
        Device {
            path: "/dev/video2".into(),
            driver: "uvcvideo".into(),
            card: "Gate".into(),
            bus: "usb-2".into(),
            links: Vec::new(),
            formats: vec![
                Format {
                    fourcc: FourCC::new(b"H264"),
                    sizes: vec![(
                        Size::Exactly {
                            width: 640,
                            height: 480,
                        },
                        vec![interval(1, 15), interval(1001, 30_000)],
                    )],
                },
                Format {
                    fourcc: FourCC::new(b"YUYV"),
                    sizes: Vec::new(),
                },
                Format {
                    fourcc: FourCC::new(b"HEVC"),
                    sizes: vec![(
                        Size::Between {
                            least: (16, 16),
                            most: (1920, 1080),
                        },
                        Vec::new(),
                    )],
                },
            ],
            controls: vec![(
                "bitrate",
                Control {
                    least: 1,
                    most: 9,
                    step: 1,
                    default: 5,
                    read_only: false,
                },
                Some(7),
            )],
            usable: Ok(Codec::H264),
            holders: vec!["ffmpeg (12)".into()],
        }
    }

    #[test]
    fn people_read_a_few_lines() {
        assert_eq!(
            device().to_string(),
            "/dev/video2  Gate\n\
             \x20 driver    uvcvideo, at usb-2\n\
             \x20 identity  usb-2, Gate\n\
             \x20 formats   H264  640x480 at 15, 29.97\n\
             \x20           HEVC  16x16 to 1920x1080\n\
             \x20 not used  YUYV\n\
             \x20 controls  bitrate 7 (1 to 9)\n\
             \x20 usable    yes: H.264\n\
             \x20 held by   ffmpeg (12)\n"
        );
    }

    #[test]
    fn programs_read_an_object() {
        let mut device = device();
        device.links = vec!["/dev/v4l/by-id/gate".into()];
        let json = device.json();
        assert_eq!(json["identity"], "/dev/v4l/by-id/gate");
        assert_eq!(json["formats"][0]["sizes"][0]["fps"][0], 15.0);
        assert_eq!(json["controls"]["bitrate"]["max"], 9);
        assert_eq!(
            (&json["usable"], &json["codec"]),
            (&true.into(), &"H.264".into())
        );
        device.usable = Err("because".into());
        let json = device.json();
        assert_eq!(
            (&json["usable"], &json["why_not"]),
            (&false.into(), &"because".into())
        );
    }
}
