//! Keeps what was persisted: `DIR/<stream>/<time of the first fragment>.mkv`, each file playable by itself. IO.
//!
//! A file holds the header of the connection that began it and then fragments, byte for byte as they came. A new one
//! begins when the tracks are other ones, or when a fragment would not be in the order of time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::date;
use super::media::{Fragment, TimecodeType};

/// The recording cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}", .path.display())]
pub struct Error {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Error {
    fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self {
            action,
            path,
            source,
        }
    }
}

/// What became of a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is stored now.
    New,
    /// It was stored before; it came again.
    Already,
}

/// Recordings of all streams.
#[derive(Debug)]
pub struct Recorder {
    directory: Option<PathBuf>,
    /// By ARN: a stream that is deleted and made anew begins anew.
    streams: BTreeMap<String, Recording>,
}

/// Which stream a fragment belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamId {
    /// Its name, for the directory.
    pub name: String,
    /// Its ARN.
    pub arn: String,
}

/// Recording of one stream.
#[derive(Debug, Default)]
struct Recording {
    /// Times of the fragments that are stored, in milliseconds since the Unix epoch.
    stored: BTreeSet<u64>,
    open: Option<OpenFile>,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    path: PathBuf,
    length: u64,
    shape: Shape,
    /// Latest time in the file, in milliseconds since the Unix epoch.
    latest_ms: u64,
}

/// Fragments of equal shape can share a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shape {
    tracks: Bytes,
    scale_ns: u64,
    times: TimecodeType,
}

impl Recorder {
    /// Records below `directory`, or only keeps track of what came.
    ///
    /// # Errors
    /// When the directory cannot be made or written to.
    pub fn new(directory: Option<PathBuf>) -> Result<Self, Error> {
        if let Some(directory) = &directory {
            fs::create_dir_all(directory)
                .map_err(Error::of("cannot make the recording directory", directory))?;
            let probe = directory.join(".kvs-write-probe");
            File::create(&probe)
                .and_then(|_| fs::remove_file(&probe))
                .map_err(Error::of(
                    "cannot write to the recording directory",
                    directory,
                ))?;
        }
        Ok(Self {
            directory,
            streams: BTreeMap::new(),
        })
    }

    /// Stores a fragment of `stream`, once.
    ///
    /// # Errors
    /// When the file cannot be written. It then ends with the fragment before.
    pub fn store(
        &mut self,
        stream: &StreamId,
        times: TimecodeType,
        fragment: &Fragment,
    ) -> Result<Stored, Error> {
        let moments = fragment.frames.iter().map(|frame| frame.at_ms);
        let (Some(first_ms), Some(last_ms)) = (moments.clone().min(), moments.max()) else {
            return Ok(Stored::Already); // the reader lets no fragment without frames through
        };
        let recording = self.streams.entry(stream.arn.clone()).or_default();
        if recording.stored.contains(&first_ms) {
            return Ok(Stored::Already);
        }
        if let Some(directory) = &self.directory {
            let directory = directory.join(directory_name(&stream.name));
            recording.append(&directory, times, fragment, first_ms, last_ms)?;
        }
        recording.stored.insert(first_ms);
        Ok(Stored::New)
    }
}

impl Recording {
    fn append(
        &mut self,
        directory: &Path,
        times: TimecodeType,
        fragment: &Fragment,
        first_ms: u64,
        last_ms: u64,
    ) -> Result<(), Error> {
        let shape = Shape {
            tracks: fragment.header.tracks.clone(),
            scale_ns: fragment.header.scale_ns,
            times,
        };
        let fits = |open: &OpenFile| open.shape == shape && first_ms > open.latest_ms;
        let mut open = match self.open.take().filter(fits) {
            Some(open) => open,
            None => OpenFile::create(directory, first_ms, shape, &fragment.header.raw)?,
        };
        open.append(&fragment.raw)?;
        open.latest_ms = last_ms;
        self.open = Some(open);
        Ok(())
    }
}

impl OpenFile {
    /// A new file, named after its first fragment; one that is there already is never touched.
    fn create(directory: &Path, first_ms: u64, shape: Shape, header: &[u8]) -> Result<Self, Error> {
        fs::create_dir_all(directory).map_err(Error::of("cannot make", directory))?;
        let name = date::file_name(first_ms);
        let mut count = 1;
        loop {
            let path = directory.join(match count {
                1 => format!("{name}.mkv"),
                _ => format!("{name}-{count}.mkv"),
            });
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    let mut open = Self {
                        file,
                        path,
                        length: 0,
                        shape,
                        latest_ms: 0,
                    };
                    open.append(header)?;
                    return Ok(open);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => count += 1,
                Err(error) => return Err(Error::of("cannot make", &path)(error)),
            }
        }
    }

    /// All of `bytes` or nothing: half a fragment would spoil the file.
    fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if let Err(error) = self.file.write_all(bytes) {
            // Nothing better is left to do when this fails as well.
            let _ = self.file.set_len(self.length);
            return Err(Error::of("cannot write", &self.path)(error));
        }
        self.length += bytes.len() as u64;
        Ok(())
    }
}

/// A stream's name as the name of a directory: `.` and `..` are good stream names.
fn directory_name(stream: &str) -> String {
    if stream.chars().all(|c| c == '.') {
        stream.replace('.', "%2E")
    } else {
        stream.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::media::{Frame, Header};

    const T0: u64 = 1_735_787_045_007;

    fn fragment(at_ms: u64, tracks: &'static str) -> Fragment {
        let frame = |at_ms| Frame {
            track: 1,
            at_ms,
            key: true,
            bytes: 1,
            payload: None,
        };
        Fragment {
            timecode: at_ms,
            frames: vec![frame(at_ms), frame(at_ms + 40)],
            tags: Vec::new(),
            raw: format!("<{}>", at_ms - T0).into(),
            header: Header {
                raw: format!("header {tracks} ").into(),
                tracks: tracks.into(),
                scale_ns: 1_000_000,
            },
        }
    }

    fn store(recorder: &mut Recorder, at_ms: u64, tracks: &'static str) -> Stored {
        store_of(recorder, "arn:1", &fragment(at_ms, tracks))
    }

    fn store_of(recorder: &mut Recorder, arn: &str, fragment: &Fragment) -> Stored {
        let stream = StreamId {
            name: "camera".into(),
            arn: arn.into(),
        };
        let stored = recorder.store(&stream, TimecodeType::Absolute, fragment);
        stored.unwrap()
    }

    fn files(directory: &Path) -> Vec<(String, String)> {
        let files = fs::read_dir(directory).unwrap().map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read_to_string(path).unwrap())
        });
        let mut files: Vec<_> = files.collect();
        files.sort();
        files
    }

    #[test]
    fn fragments_of_equal_tracks_share_a_file_in_the_order_of_time() {
        let directory = tempfile::tempdir().unwrap();
        let mut recorder = Recorder::new(Some(directory.path().join("new"))).unwrap();
        assert_eq!(store(&mut recorder, T0, "a"), Stored::New);
        assert_eq!(store(&mut recorder, T0 + 1000, "a"), Stored::New);
        assert_eq!(store(&mut recorder, T0 + 1000, "a"), Stored::Already);
        assert_eq!(store(&mut recorder, T0 + 2000, "b"), Stored::New);
        assert_eq!(store(&mut recorder, T0 + 500, "b"), Stored::New);
        let files = files(&directory.path().join("new/camera"));
        let expected = [
            ("20250102T030405.007Z.mkv", "header a <0><1000>"),
            ("20250102T030405.507Z.mkv", "header b <500>"),
            ("20250102T030407.007Z.mkv", "header b <2000>"),
        ];
        assert_eq!(files, expected.map(|(n, t)| (n.to_owned(), t.to_owned())));
    }

    #[test]
    fn files_of_an_earlier_run_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let mut recorder = Recorder::new(Some(directory.path().to_owned())).unwrap();
            store(&mut recorder, T0, "a");
        }
        let files = files(&directory.path().join("camera"));
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            ["20250102T030405.007Z-2.mkv", "20250102T030405.007Z.mkv"]
        );
    }

    #[test]
    fn stream_that_is_made_anew_has_stored_nothing() {
        let mut recorder = Recorder::new(None).unwrap();
        let fragment = fragment(T0, "a");
        assert_eq!(store_of(&mut recorder, "arn:1", &fragment), Stored::New);
        assert_eq!(store_of(&mut recorder, "arn:1", &fragment), Stored::Already);
        assert_eq!(store_of(&mut recorder, "arn:2", &fragment), Stored::New);
    }

    #[test]
    fn unusable_directory_is_told_at_the_start() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Recorder::new(Some(file.path().join("below"))).unwrap_err();
        let message = error.to_string();
        assert!(
            message.starts_with("cannot make the recording directory"),
            "{message}"
        );
    }

    #[test]
    fn full_disk_is_an_error_and_leaves_what_was_there() {
        let mut open = OpenFile {
            file: OpenOptions::new().write(true).open("/dev/full").unwrap(),
            path: "/dev/full".into(),
            length: 0,
            shape: Shape {
                tracks: Bytes::new(),
                scale_ns: 1,
                times: TimecodeType::Absolute,
            },
            latest_ms: 0,
        };
        assert_eq!(
            open.append(b"x").unwrap_err().to_string(),
            "cannot write /dev/full"
        );
        assert_eq!(open.length, 0);
    }

    #[test]
    fn dots_do_not_lead_out_of_the_directory() {
        assert_eq!(directory_name(".."), "%2E%2E");
        assert_eq!(directory_name("..a"), "..a");
    }
}
