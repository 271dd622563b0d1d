//! Looks at the machine's nodes. What to make of them is decided in `choice`.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::abi::{self, Planes};
use super::choice::{Answers, BY_ID, BY_PATH, Seen, reason};
use super::node::Node;
use super::words;

/// All video nodes, in the order of their numbers: who they are. A camera that is away is looked for among them every two
/// seconds, so that they are asked for no more than that.
pub(super) fn nodes() -> Vec<Seen> {
    let links = links();
    words::video_nodes()
        .into_iter()
        .map(|path| {
            let leading_here = links
                .iter()
                .filter(|(_, node)| node.as_path() == Path::new(&path));
            Seen {
                index: index(&path),
                links: leading_here.map(|(link, _)| link.clone()).collect(),
                answers: ask(&path),
                busy: false,
                path: path.into(),
            }
        })
        .collect()
}

/// As [`nodes`], with what they deliver and whether somebody captures from them. They are not touched.
pub(super) fn nodes_in_use() -> Vec<Seen> {
    let mut nodes = nodes();
    nodes.iter_mut().for_each(look_into);
    nodes
}

fn ask(path: &str) -> Result<Answers, String> {
    let node =
        Node::open(Path::new(path)).map_err(|error| reason(words::cannot_open(path, error)))?;
    let capabilities =
        abi::capabilities(&node).map_err(|error| reason(words::not_a_camera(path, error)))?;
    Ok(Answers {
        formats: Vec::new(),
        capabilities,
    })
}

fn look_into(seen: &mut Seen) {
    let captures = seen.captures();
    let (Ok(answers), Ok(node)) = (&mut seen.answers, Node::open(&seen.path)) else {
        return;
    };
    let planes = Planes::of(answers.capabilities.flags);
    // What captures nothing has none.
    answers.formats = abi::formats(&node, planes).unwrap_or_default();
    // Asking for no buffers changes nothing, and the driver refuses it when they are another's.
    let asked = captures.then(|| abi::request_buffers(&node, planes, 0));
    seen.busy = asked.is_some_and(|asked| asked.is_err_and(|error| words::is(&error, Errno::BUSY)));
}

/// The names that udev keeps, and the nodes that they lead to.
fn links() -> Vec<(PathBuf, PathBuf)> {
    let mut links: Vec<_> = [BY_ID, BY_PATH]
        .into_iter()
        .filter_map(|directory| fs::read_dir(directory).ok())
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.path(), fs::canonicalize(entry.path()).ok()?)))
        .collect();
    links.sort();
    links
}

fn index(path: &str) -> Option<u32> {
    let name = path.rsplit('/').next()?;
    let file = format!("/sys/class/video4linux/{name}/index");
    fs::read_to_string(file).ok()?.trim().parse().ok()
}
