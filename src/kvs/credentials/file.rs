//! The credential file of AWS's own producers: one line that somebody else keeps up to date.
//!
//! ```text
//! CREDENTIALS <key id> <secret>
//! CREDENTIALS <key id> <end, ISO 8601 UTC> <secret> <session token>
//! ```

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use aws_credential_types::Credentials;

use super::{Secret, parse_end};

/// Why the file is of no use. What is in it is never repeated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error(
        "cannot read the credential file {}: {source}; whoever is to write it has not, or not for this user", .path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's word.
        source: io::Error,
    },
    /// It is another kind of file.
    #[error(
        "the credential file {} does not start with the word CREDENTIALS; a profile file goes into AWS_SHARED_CREDENTIALS_FILE",
        .0.display()
    )]
    NotCredentials(PathBuf),
    /// It has neither two nor four words.
    #[error(
        "the credential file {} has {words} words behind CREDENTIALS: there are two (key id, secret) or four (key id, end, \
         secret, session token)", .path.display()
    )]
    Words {
        /// The file.
        path: PathBuf,
        /// How many.
        words: usize,
    },
    /// The end is no time.
    #[error(
        "the credential file {} has no time as its third word: the end is written like 2025-01-02T03:04:05Z", .0.display()
    )]
    End(PathBuf),
}

/// By what a file is known not to have changed.
type Stamp = (u64, u64, i64, i64);

/// The file, and which of its versions was read last.
#[derive(Debug)]
pub struct CredentialFile {
    path: PathBuf,
    read: Mutex<Option<Stamp>>,
}

impl CredentialFile {
    /// The file at this place, which may not be there yet.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            read: Mutex::default(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is another one than was read last. One that has gone is not: its writer may be about to put a new one
    /// in its place.
    pub fn has_changed(&self) -> bool {
        let stamp = self.stamp();
        stamp.is_some() && stamp != *self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in it now.
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub fn read(&self) -> Result<Credentials, Error> {
        // First, so that what is written meanwhile counts as a change; and for a file that cannot be opened as well.
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = self.stamp();
        let text = Secret::read(&self.path).map_err(|source| Error::Read {
            path: self.path.clone(),
            source,
        })?;
        parse(&text, &self.path)
    }

    fn stamp(&self) -> Option<Stamp> {
        let data = self.path.metadata().ok()?;
        Some((data.ino(), data.size(), data.mtime(), data.mtime_nsec()))
    }
}

/// Pure; `path` is for the errors.
fn parse(text: &Secret, path: &Path) -> Result<Credentials, Error> {
    // What is no text has no words.
    let text = std::str::from_utf8(text.as_bytes()).unwrap_or_default();
    let mut words = text.split_ascii_whitespace();
    if words.next() != Some("CREDENTIALS") {
        return Err(Error::NotCredentials(path.into()));
    }
    let words: Vec<_> = words.collect();
    let (id, secret, token, end) = match words[..] {
        [id, secret] => (id, secret, None, None),
        [id, end, secret, token] => {
            let end: SystemTime = parse_end(end).ok_or_else(|| Error::End(path.into()))?;
            (id, secret, Some(token.to_owned()), Some(end))
        }
        _ => {
            return Err(Error::Words {
                path: path.into(),
                words: words.len(),
            });
        }
    };
    Ok(Credentials::new(id, secret, token, end, "CredentialFile"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn of(text: &str) -> Result<Credentials, Error> {
        parse(
            &Secret::new(text.as_bytes().to_vec()),
            Path::new("/run/cred"),
        )
    }

    #[test]
    fn both_forms_are_read() {
        let fixed = of("CREDENTIALS AKID secret/+\n").expect("two words");
        assert_eq!(
            (
                fixed.access_key_id(),
                fixed.secret_access_key(),
                fixed.session_token(),
                fixed.expiry()
            ),
            ("AKID", "secret/+", None, None)
        );
        let end = UNIX_EPOCH + Duration::from_secs(1_735_787_045);
        for (text, end) in [
            ("2025-01-02T03:04:05Z", end),
            ("2025-01-02T03:04:05.250Z", end + Duration::from_millis(250)),
        ] {
            let line = format!("  CREDENTIALS\tASIA  {text} secret token==\r\n\n");
            let temporary = of(&line).expect("four words");
            assert_eq!(
                (
                    temporary.access_key_id(),
                    temporary.secret_access_key(),
                    temporary.session_token(),
                    temporary.expiry()
                ),
                ("ASIA", "secret", Some("token=="), Some(end))
            );
        }
    }

    #[test]
    fn what_is_wrong_is_told_and_nothing_of_what_is_in_it() {
        for (text, says) in [
            ("", "the word CREDENTIALS"),
            ("[default]\naws_secret_access_key = hush", "AWS_SHARED"),
            ("credentials AKID hush", "the word CREDENTIALS"),
            ("CREDENTIALS hush", "1 words"),
            ("CREDENTIALS AKID 2025-01-02T03:04:05Z hush", "3 words"),
            ("CREDENTIALS AKID hush tomorrow token", "03:04:05Z"),
            ("CREDENTIALS AKID 2025-13-02T03:04:05Z hush t", "03:04:05Z"),
            ("CREDENTIALS AKID 2025-01-02T03:04:05Z hush t t", "5 words"),
        ] {
            let error = of(text).expect_err(text).to_string();
            assert!(error.contains(says), "{error}");
            assert!(error.contains("/run/cred"), "{error}");
            assert!(!error.contains("hush") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_new_one_is_noticed_and_a_missing_one_is_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("credentials");
        let file = CredentialFile::new(path.clone());
        assert!(!file.has_changed());
        let error = file.read().expect_err("not there").to_string();
        assert!(error.contains("credentials: No such file"), "{error}");
        fs::write(&path, "CREDENTIALS AKID one").expect("written");
        assert!(file.has_changed());
        assert_eq!(file.read().expect("read").secret_access_key(), "one");
        assert!(!file.has_changed());
        // As whoever writes it should: all at once.
        let next = directory.path().join("next");
        fs::write(&next, "CREDENTIALS AKID two").expect("written");
        fs::rename(&next, &path).expect("renamed");
        assert!(file.has_changed());
        assert_eq!(file.read().expect("read").secret_access_key(), "two");
    }
}
