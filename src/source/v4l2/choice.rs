//! Which of a machine's nodes is the camera: the first choice, and finding it again after it was unplugged. Pure.

use std::path::{Path, PathBuf};

use v4l::FourCC;
use v4l::capability::Flags;

use super::abi::Capabilities;
use super::{camera, words};
use crate::frame::Codec;
use crate::source::Error;

/// Where the stable names of cameras are, by what they are, that udev keeps.
pub(super) const BY_ID: &str = "/dev/v4l/by-id";
/// And by where they are plugged in.
pub(super) const BY_PATH: &str = "/dev/v4l/by-path";

/// A node, looked at from outside and, as far as it let us, asked.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) path: PathBuf,
    /// Which of its device's nodes it is; cameras have one for pictures and often another for metadata.
    pub(super) index: Option<u32>,
    /// Stable names that lead to it.
    pub(super) links: Vec<PathBuf>,
    /// `Err` is why it cannot be asked, in plain words.
    pub(super) answers: Result<Answers, String>,
    /// Somebody else captures from it.
    pub(super) busy: bool,
}

/// What the driver says of its node.
#[derive(Debug, Clone)]
pub(super) struct Answers {
    pub(super) capabilities: Capabilities,
    /// Empty where only who it is was asked.
    pub(super) formats: Vec<FourCC>,
}

/// Why a node cannot be used, in plain words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// How near it comes to a camera that can, 0 nearest: of several the nearest is worth telling.
    distance: u8,
    pub(super) reason: String,
}

impl Seen {
    fn capabilities(&self) -> Option<&Capabilities> {
        Some(&self.answers.as_ref().ok()?.capabilities)
    }

    /// Whether it delivers pictures, in whatever format.
    pub(super) fn captures(&self) -> bool {
        self.capabilities().is_some_and(|capabilities| {
            let flags = capabilities.flags;
            flags.intersects(Flags::VIDEO_CAPTURE | Flags::VIDEO_CAPTURE_MPLANE)
        })
    }

    /// How its pictures would be encoded.
    pub(super) fn verdict(&self, wanted: Option<Codec>) -> Result<Codec, Refusal> {
        let path = self.path.display().to_string();
        let refusal = |distance| move |reason| Refusal { distance, reason };
        let answers = self.answers.as_ref();
        let answers = answers.map_err(|reason| refusal(2)(reason.clone()))?;
        words::check_node(&path, &answers.capabilities)
            .map_err(|error| refusal(3)(reason(error)))?;
        let driver = &answers.capabilities.driver;
        let (_, codec) = camera::preferred(&answers.formats, wanted).ok_or_else(|| {
            let error = words::no_encoder(&path, driver, &answers.formats, wanted);
            refusal(1)(reason(error))
        })?;
        if self.busy {
            return Err(refusal(0)(words::busy(&words::holders(&path))));
        }
        Ok(codec)
    }
}

/// The message without the place.
pub(super) fn reason(error: Error) -> String {
    match error {
        Error::Unusable { reason, .. } => reason,
        other @ Error::Io { .. } => crate::chain(&other).to_string(),
    }
}

/// The first node that can be used; with `name`, of those whose card has this in its name, in upper or lower case.
pub(super) fn pick<'a>(
    nodes: &'a [Seen],
    name: Option<&str>,
    codec: Option<Codec>,
) -> Result<&'a Seen, Error> {
    let asked = name.map(str::to_lowercase);
    let matches = |node: &&Seen| {
        asked.as_ref().is_none_or(|name| {
            node.capabilities()
                .is_some_and(|capabilities| capabilities.card.to_lowercase().contains(name))
        })
    };
    let mut nearest: Option<(&Seen, Refusal)> = None;
    for node in nodes.iter().filter(matches) {
        match node.verdict(codec) {
            Ok(_) => return Ok(node),
            Err(refusal) => {
                let nearer = |(_, other): &(_, Refusal)| refusal.distance < other.distance;
                if nearest.as_ref().is_none_or(nearer) {
                    nearest = Some((node, refusal));
                }
            }
        }
    }
    Err(match (nearest, name) {
        (Some((node, refusal)), _) => words::none_usable(&node.path, &refusal.reason, nodes.len()),
        (None, Some(name)) => words::no_such_card(name, &cards(nodes)),
        (None, None) => words::no_node(),
    })
}

/// `"/dev/video0 (HD Pro Webcam)"` of each that delivers pictures.
fn cards(nodes: &[Seen]) -> Vec<String> {
    nodes
        .iter()
        .filter(|node| node.captures())
        .filter_map(|node| {
            Some(format!(
                "{} ({})",
                node.path.display(),
                node.capabilities()?.card
            ))
        })
        .collect()
}

/// What a camera is recognized by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    path: PathBuf,
    index: Option<u32>,
    links: Vec<PathBuf>,
    driver: String,
    card: String,
    bus: String,
    /// There was another of the same make, so that what it is does not tell which it is.
    has_twin: bool,
}

impl Identity {
    /// Of the camera at `path`, among all nodes. `None` when it is not there any more.
    pub(super) fn of(path: &Path, nodes: &[Seen]) -> Option<Self> {
        let node = nodes.iter().find(|node| node.path == path)?;
        let own = node.capabilities()?;
        let twin = |other: &Capabilities| {
            (&other.driver, &other.card) == (&own.driver, &own.card) && other.bus != own.bus
        };
        Some(Self {
            path: node.path.clone(),
            index: node.index,
            links: node.links.clone(),
            driver: own.driver.clone(),
            card: own.card.clone(),
            bus: own.bus.clone(),
            has_twin: nodes.iter().filter_map(Seen::capabilities).any(twin),
        })
    }

    /// The node that is this camera now, whatever its number: the same make in the same socket, or else, in any socket,
    /// under the same name by what it is.
    pub(super) fn find<'a>(&self, nodes: &'a [Seen]) -> Option<&'a Seen> {
        nodes
            .iter()
            .filter_map(|node| Some((self.distance(node)?, node)))
            .min_by_key(|(distance, _)| *distance)
            .map(|(_, node)| node)
    }

    /// How near the node comes to being it, the least being nearest; `None` when it is another.
    fn distance(&self, node: &Seen) -> Option<[bool; 3]> {
        let its = node.capabilities()?;
        let other_node = node
            .index
            .zip(self.index)
            .is_some_and(|(its, own)| its != own);
        if (&its.driver, &its.card) != (&self.driver, &self.card) || other_node {
            return None;
        }
        let shares = |kind: &str| {
            let of_kind = |link: &&PathBuf| link.starts_with(kind);
            let mut own = self.links.iter().filter(of_kind);
            own.any(|link| node.links.contains(link))
        };
        let same_socket = its.bus == self.bus || shares(BY_PATH);
        if !same_socket && (self.has_twin || !shares(BY_ID)) {
            return None;
        }
        Some([!same_socket, !node.captures(), node.path != self.path])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAMERA: Flags = Flags::VIDEO_CAPTURE.union(Flags::STREAMING);

    fn node(number: u32, card: &str, bus: &str, formats: &[[u8; 4]]) -> Seen {
        Seen {
            path: format!("/dev/video{number}").into(),
            index: Some(0),
            links: Vec::new(),
            answers: Ok(Answers {
                capabilities: Capabilities {
                    driver: "uvcvideo".to_owned(),
                    card: card.to_owned(),
                    bus: bus.to_owned(),
                    flags: CAMERA,
                },
                formats: formats.iter().map(FourCC::new).collect(),
            }),
            busy: false,
        }
    }

    fn metadata(number: u32, card: &str, bus: &str) -> Seen {
        let mut node = node(number, card, bus, &[]);
        node.index = Some(1);
        if let Ok(answers) = &mut node.answers {
            answers.capabilities.flags = Flags::META_CAPTURE | Flags::STREAMING;
        }
        node
    }

    fn linked(mut node: Seen, links: &[&str]) -> Seen {
        node.links = links.iter().map(PathBuf::from).collect();
        node
    }

    fn picked(nodes: &[Seen], name: Option<&str>, codec: Option<Codec>) -> Result<String, String> {
        match pick(nodes, name, codec) {
            Ok(node) => Ok(node.path.display().to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_first_node_that_can_be_used_is_taken() {
        let mut busy = node(3, "Door", "usb-3", &[*b"H264"]);
        busy.busy = true;
        let nodes = [
            node(0, "Laptop", "usb-1", &[*b"YUYV"]),
            metadata(1, "Laptop", "usb-1"),
            busy,
            node(5, "Gate", "usb-5", &[*b"HEVC"]),
            node(7, "Gate", "usb-7", &[*b"MJPG", *b"H264"]),
        ];
        assert_eq!(picked(&nodes, None, None).as_deref(), Ok("/dev/video5"));
        let h264 = picked(&nodes, None, Some(Codec::H264));
        assert_eq!(h264.as_deref(), Ok("/dev/video7"));
        assert_eq!(
            picked(&nodes, Some("gATE"), None).as_deref(),
            Ok("/dev/video5")
        );
        let said = picked(&nodes, Some("Laptop"), None).unwrap_err();
        assert!(said.starts_with("/dev/video0: "), "{said}");
        assert!(said.contains("it offers YUYV"), "{said}");
        let said = picked(&nodes, Some("Door"), None).unwrap_err();
        assert!(said.starts_with("/dev/video3: busy"), "{said}");
        let said = picked(&nodes, Some("garden"), None).unwrap_err();
        assert!(said.contains("/dev/video0 (Laptop), "), "{said}");
        assert!(!said.contains("/dev/video1 "), "{said}");
    }

    #[test]
    fn of_those_that_cannot_the_nearest_is_told() {
        let mut forbidden = node(0, "", "", &[]);
        forbidden.answers = Err("not permitted: it belongs to the group video".to_owned());
        let nodes = [
            metadata(1, "Laptop", "usb-1"),
            forbidden,
            node(2, "Laptop", "usb-1", &[*b"YUYV"]),
        ];
        let said = picked(&nodes, None, None).unwrap_err();
        assert!(said.starts_with("/dev/video2: "), "{said}");
        assert!(said.contains("kvsProducerApp devices"), "{said}");
        let said = picked(&nodes[..2], None, None).unwrap_err();
        assert!(said.starts_with("/dev/video0: not permitted"), "{said}");
        let said = picked(&nodes[..1], None, None).unwrap_err();
        assert!(said.contains("metadata"), "{said}");
        assert!(!said.contains("kvsProducerApp devices"), "{said}");
        let said = picked(&[], None, None).unwrap_err();
        assert!(said.contains("no /dev/video* at all"), "{said}");
        for said in [picked(&nodes, None, None), picked(&[], Some("x"), None)] {
            assert!(!said.unwrap_err().contains('\n'));
        }
    }

    const ID: &str = "/dev/v4l/by-id/usb-Maker_Gate_0815-video-index0";
    const PLACE: &str = "/dev/v4l/by-path/pci-0000:00:14.0-usb-0:2:1.0-video-index0";

    fn found(identity: &Identity, nodes: &[Seen]) -> Option<String> {
        let node = identity.find(nodes)?;
        Some(node.path.display().to_string())
    }

    #[test]
    fn a_camera_is_found_again_under_another_number() {
        let before = [
            node(0, "Gate", "usb-2", &[*b"H264"]),
            metadata(1, "Gate", "usb-2"),
            node(2, "Laptop", "usb-1", &[*b"YUYV"]),
        ];
        let identity = Identity::of(Path::new("/dev/video0"), &before).unwrap();
        assert_eq!(found(&identity, &before).as_deref(), Some("/dev/video0"));
        // Another has taken its number.
        let after = [
            node(0, "Laptop", "usb-1", &[*b"H264"]),
            metadata(3, "Gate", "usb-2"),
            node(4, "Gate", "usb-2", &[*b"H264"]),
        ];
        assert_eq!(found(&identity, &after).as_deref(), Some("/dev/video4"));
        assert_eq!(found(&identity, &after[..2]), None);
        assert_eq!(Identity::of(Path::new("/dev/video9"), &after), None);
    }

    #[test]
    fn a_camera_in_another_socket_is_found_by_its_id_unless_it_has_a_twin() {
        let own = linked(node(0, "Gate", "usb-2", &[]), &[ID, PLACE]);
        let moved = linked(node(4, "Gate", "usb-9", &[]), &[ID]);
        let twin = node(2, "Gate", "usb-3", &[]);
        let path = Path::new("/dev/video0");
        let single = Identity::of(path, std::slice::from_ref(&own)).unwrap();
        assert_eq!(
            found(&single, std::slice::from_ref(&moved)).as_deref(),
            Some("/dev/video4")
        );
        // With two of a kind udev lets the name lead to the one that is left.
        let one_of_two = Identity::of(path, &[own, twin.clone()]).unwrap();
        let left = linked(twin, &[ID]);
        assert_eq!(found(&one_of_two, &[left]), None);
        // The socket tells them apart; a hub may name it differently on another controller.
        let back = linked(node(6, "Gate", "usb-7", &[]), &[PLACE]);
        assert_eq!(
            found(&one_of_two, &[moved, back]).as_deref(),
            Some("/dev/video6")
        );
    }
}
