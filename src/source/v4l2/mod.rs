//! A camera behind Video4Linux2: H.264 or H.265 that the camera or its chip has encoded.
//!
//! ```text
//! Source ── V4l2 ── Camera ── Kernel ──► Node   (the unsafe island)
//!                                   └──► Fake   (a script, in the tests)
//! ```
//!
//! `camera` negotiates the format and moves the buffers; `ledger` tells which of them hold frames; `settings` are those of
//! its encoder; `ladder` decides what to do when it stalls, `choice` which node it is. `abi`, `layout` and `control` know
//! what the calls look like as bytes; `node` makes them, `self_check` compares them with the kernel's. `words` says what is
//! wrong with a camera and what to do about it.
//!
//! One buffer of the driver is taken for one access unit. V4L2 asks drivers for that, and those of USB cameras and of
//! the usual encoders keep to it; a driver that hands out single NAL units or several frames at once would have to be
//! re-cut as the bytes of a pipe are.

mod abi;
mod camera;
mod choice;
mod control;
pub mod devices;
#[cfg(test)]
mod fake;
mod ladder;
mod layout;
mod ledger;
mod node;
pub mod self_check;
mod settings;
mod survey;
mod words;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{info, warn};

use self::abi::Planes;
use self::camera::Camera;
use self::choice::Identity;
use self::node::Node;
use super::{Error, Read, Source, Wait};
use crate::clock::Clock;
use crate::codec::FrameRate;
use crate::frame::{CameraLosses, Codec, Dimensions};

/// What is wanted of a camera.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Only this codec. Without it H.264 is taken before H.265.
    pub codec: Option<Codec>,
    /// Frames a second. Without it the camera's present rate; a camera that has only other rates takes the nearest, and
    /// a warning says so.
    pub fps: Option<FrameRate>,
    /// Size of the picture. Without it the camera's present size.
    pub size: Option<Dimensions>,
    /// Bits a second. Without it the camera's present bitrate.
    pub bitrate: Option<u32>,
    /// From key frame to key frame. Without it two seconds, and no word when the camera cannot.
    pub gop: Option<Duration>,
    /// Without it the camera's present profile.
    pub profile: Option<Profile>,
}

/// A profile of H.264. H.265 has only one for 8 bits a sample, which stands for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Constrained baseline: what the simplest decoders take.
    Baseline,
    /// Main.
    Main,
    /// High: the smallest stream.
    High,
}

/// Which camera.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The first that can be used.
    First,
    /// This node, or what a link leads to.
    At(PathBuf),
    /// The first that can be used with this in its card's name, in upper or lower case.
    Named(String),
}

/// The camera that streams, for whoever has to stop it when the thread that has it is lost and will not give it back.
#[derive(Clone, Default)]
pub struct Leftover(Arc<Mutex<Option<Node>>>);

impl Leftover {
    /// Stops the stream and gives the driver its buffers back, so that the camera can be opened anew. Does nothing where no
    /// camera streams.
    ///
    /// # Errors
    /// When the driver keeps them: before Linux 4.20 that is so while they are mapped.
    pub fn stop(&self) -> Result<(), Error> {
        let Some(node) = self.slot().take() else {
            return Ok(());
        };
        let stop = || {
            let planes = Planes::of(abi::capabilities(&node)?.flags);
            abi::stream_off(&node, planes)?;
            abi::request_buffers(&node, planes, 0)
        };
        stop().map(drop).map_err(|source| Error::Io {
            action: "only the end of this program gives back",
            place: "the camera that a fault of it has left streaming".into(),
            source,
        })
    }

    fn slot(&self) -> MutexGuard<'_, Option<Node>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Leftover({})", self.slot().is_some())
    }
}

/// Opens a camera, and the same one again when it was lost.
#[derive(Debug)]
pub struct Finder {
    which: Which,
    options: Options,
    clock: Clock,
    leftover: Leftover,
    /// The camera that was opened first.
    found: Option<Found>,
    /// What was said already.
    remarks: Vec<String>,
}

#[derive(Debug)]
struct Found {
    path: PathBuf,
    /// `None` when it vanished before it could be looked at.
    identity: Option<Identity>,
}

impl Finder {
    /// Looks for nothing yet. The camera that streams is entered into `leftover`.
    pub fn new(which: Which, options: Options, clock: Clock, leftover: Leftover) -> Self {
        Self {
            which,
            options,
            clock,
            leftover,
            found: None,
            remarks: Vec::new(),
        }
    }

    /// Opens the camera; from the second time on the one that was opened before, which may have another number by now.
    ///
    /// # Errors
    /// Those of [`V4l2::open`], and when no camera, or not the same, is there.
    pub fn open(&mut self) -> Result<V4l2, Error> {
        let path = self.path()?;
        let camera = V4l2::open_entered(&path, &self.options, self.clock, &self.leftover)?;
        if self.found.is_none() {
            // A link is looked up again each time; what it leads to is for udev, or for its owner, to say.
            let is_link = path.is_symlink();
            let identity = (!is_link).then(|| Identity::of(&path, &survey::nodes()));
            self.found = Some(Found {
                path,
                identity: identity.flatten(),
            });
        }
        let remarks = camera.camera.remarks();
        if !remarks.is_empty() && remarks != self.remarks {
            warn!(
                "{} does not do all that is asked: {}",
                camera.describe(),
                remarks.join("; ")
            );
            self.remarks = remarks.to_vec();
        }
        Ok(camera)
    }

    /// Where the camera is.
    fn path(&self) -> Result<PathBuf, Error> {
        if let Some(found) = &self.found {
            let Some(identity) = &found.identity else {
                return Ok(found.path.clone());
            };
            let nodes = survey::nodes();
            let node = identity.find(&nodes);
            return match node {
                Some(node) => Ok(node.path.clone()),
                None => Err(words::away(&found.path)),
            };
        }
        let name = match &self.which {
            Which::At(path) => return Ok(path.clone()),
            Which::Named(name) => Some(name.as_str()),
            Which::First => None,
        };
        let nodes = survey::nodes_in_use();
        let node = choice::pick(&nodes, name, self.options.codec)?;
        if name.is_none() {
            info!(
                "no source is given: taking the camera {}",
                node.path.display()
            );
        }
        Ok(node.path.clone())
    }
}

/// A camera that streams. Dropping it stops the stream and closes the node, and never panics.
pub struct V4l2 {
    camera: Camera<Node>,
    leftover: Leftover,
}

impl V4l2 {
    /// Opens the node, sets the format and starts the stream.
    ///
    /// # Errors
    /// [`Error::Unusable`] in plain words when the node is absent, forbidden, busy, or not a camera that encodes;
    /// [`Error::Io`] for anything else that the driver refuses.
    pub fn open(path: &Path, options: &Options, clock: Clock) -> Result<Self, Error> {
        Self::open_entered(path, options, clock, &Leftover::default())
    }

    /// As [`Self::open`], and enters the camera into `leftover` for as long as it streams.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn open_entered(
        path: &Path,
        options: &Options,
        clock: Clock,
        leftover: &Leftover,
    ) -> Result<Self, Error> {
        let place = path.display().to_string();
        words::check_path(&place)?;
        let node = Node::open(path).map_err(|error| words::cannot_open(&place, error))?;
        *leftover.slot() = Some(node.clone());
        let camera = Camera::start(node, &place, options, clock);
        if camera.is_err() {
            *leftover.slot() = None;
        }
        Ok(Self {
            camera: camera?,
            leftover: leftover.clone(),
        })
    }
}

impl Drop for V4l2 {
    fn drop(&mut self) {
        // The camera, which is dropped next, then closes the node.
        *self.leftover.slot() = None;
    }
}

impl Source for V4l2 {
    fn describe(&self) -> String {
        self.camera.describe()
    }

    fn read(&mut self, wait: Wait<'_>) -> Result<Read<'_>, Error> {
        self.camera.read(wait)
    }

    fn losses(&self) -> CameraLosses {
        self.camera.losses()
    }

    fn want_key_frame(&mut self) {
        self.camera.want_key_frame();
    }
}
