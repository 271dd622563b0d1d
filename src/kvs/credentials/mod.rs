//! Where credentials come from, and how they are kept fresh.
//!
//! `refresh` decides when they are fetched, `keeper` fetches and holds them, `iot` and `file` are the providers that the AWS
//! crates lack.

pub mod file;
pub mod iot;
pub mod keeper;
pub mod refresh;

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use zeroize::Zeroizing;

/// Where credentials come from.
#[derive(Debug, Clone, Default)]
pub enum Provider {
    /// As AWS users know it: environment, profile files, web identity, container, instance metadata.
    #[default]
    Chain,
    /// AWS IoT Core, for the certificate of a thing.
    Iot(iot::Options),
    /// A file that somebody else keeps up to date.
    File(PathBuf),
}

/// Why it is not clear where credentials are to come from.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Two places were given.
    #[error("credentials come from one place: give either --credential-file or the --iot options")]
    Two,
    /// AWS IoT was meant, and something it needs makes no sense.
    #[error(transparent)]
    Iot(#[from] iot::Error),
}

impl Provider {
    /// What was asked for: by options, else by the environment `variable`, where the key variables come before those of AWS
    /// IoT.
    ///
    /// # Errors
    /// When that is two things at once, or only half a thing.
    pub fn choose(
        options: iot::Inputs,
        file: Option<PathBuf>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Error> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        match (options.is_empty(), file) {
            (true, Some(file)) => return Ok(Self::File(file)),
            (false, Some(_)) => return Err(Error::Two),
            (true, None) if variable("AWS_ACCESS_KEY_ID").is_some() => return Ok(Self::Chain),
            (_, None) => {}
        }
        let inputs = options.or_from(variable);
        if inputs.is_empty() {
            return Ok(Self::Chain);
        }
        Ok(Self::Iot(iot::Options::new(inputs)?))
    }
}

/// Bytes that are never shown, and are overwritten when they are dropped.
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// The most that a file with a secret in it has, in bytes: chains of certificates are a few kB.
    const MAX_FILE_BYTES: usize = 64 * 1024;

    /// These bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// What is in a file.
    ///
    /// # Errors
    /// When it cannot be read, or has more than 64 KiB.
    pub fn read(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // All at once: a vector that grows leaves copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(Self::MAX_FILE_BYTES + 1));
        file.take(Self::MAX_FILE_BYTES as u64 + 1)
            .read_to_end(&mut bytes)?;
        if bytes.len() > Self::MAX_FILE_BYTES {
            let why = "it has more than 64 KiB: it is another file";
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        Ok(Self(bytes))
    }

    /// To be read, not to be copied.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

/// Whether any user of this machine can read the file; not where that cannot be told.
fn is_open_to_all(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    const OTHERS_READ: u32 = 0o004;
    path.metadata()
        .is_ok_and(|data| data.permissions().mode() & OTHERS_READ != 0)
}

/// When credentials end, as the providers write it: ISO 8601 in UTC, with or without a fraction of a second.
fn parse_end(text: &str) -> Option<SystemTime> {
    DateTime::from_str(text, Format::DateTime)
        .ok()?
        .try_into()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIVE: [(&str, &str); 5] = [
        (
            "AWS_IOT_CORE_CREDENTIAL_ENDPOINT",
            "c1.credentials.iot.us-west-2.amazonaws.com",
        ),
        ("AWS_IOT_CORE_CERT", "/cert.pem"),
        ("AWS_IOT_CORE_PRIVATE_KEY", "/key.pem"),
        ("AWS_IOT_CORE_ROLE_ALIAS", "CameraRole"),
        ("AWS_IOT_CORE_THING_NAME", "camera-1"),
    ];

    fn choose(
        options: iot::Inputs,
        file: Option<&str>,
        environment: &[(&str, &str)],
    ) -> Result<Provider, Error> {
        Provider::choose(options, file.map(PathBuf::from), |name| {
            let found = environment.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.into())
        })
    }

    #[test]
    fn options_come_before_keys_and_keys_before_the_variables_of_iot() {
        let nothing = iot::Inputs::default;
        let keys = ("AWS_ACCESS_KEY_ID", "AKID");
        assert!(matches!(choose(nothing(), None, &[]), Ok(Provider::Chain)));
        assert!(matches!(
            choose(nothing(), None, &FIVE),
            Ok(Provider::Iot(_))
        ));
        let mut both = FIVE.to_vec();
        both.push(keys);
        assert!(matches!(
            choose(nothing(), None, &both),
            Ok(Provider::Chain)
        ));
        // A variable that is set to nothing is not set.
        both.pop();
        both.push(("AWS_ACCESS_KEY_ID", ""));
        assert!(matches!(
            choose(nothing(), None, &both),
            Ok(Provider::Iot(_))
        ));
        assert!(matches!(
            choose(nothing(), Some("/cred"), &both),
            Ok(Provider::File(path)) if path == Path::new("/cred")
        ));
        both.push(keys);
        let thing = iot::Inputs {
            thing: Some("gate".into()),
            ..nothing()
        };
        // The one that is given on the command line, and four from the environment.
        let Ok(Provider::Iot(chosen)) = choose(thing.clone(), None, &both) else {
            panic!("an option decides");
        };
        assert_eq!(chosen.thing(), "gate");
        assert!(matches!(choose(thing, Some("/cred"), &[]), Err(Error::Two)));
    }

    #[test]
    fn half_of_what_iot_needs_names_the_other_half() {
        let error = choose(iot::Inputs::default(), None, &FIVE[..3]).expect_err("half");
        let text = error.to_string();
        assert!(
            text.starts_with("--iot-role-alias and --iot-thing are missing"),
            "{text}"
        );
    }

    #[test]
    fn a_secret_is_not_shown_and_a_large_file_is_none() {
        let secret = Secret::new(b"hush".to_vec());
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), vec![b'x'; Secret::MAX_FILE_BYTES]).expect("written");
        assert_eq!(
            Secret::read(file.path()).expect("fits").as_bytes().len(),
            Secret::MAX_FILE_BYTES
        );
        std::fs::write(file.path(), vec![b'x'; Secret::MAX_FILE_BYTES + 1]).expect("written");
        assert!(Secret::read(file.path()).is_err());
    }

    #[test]
    fn a_file_that_others_can_read_is_noticed() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().expect("a file");
        for (mode, open) in [(0o600, false), (0o440, false), (0o644, true)] {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(file.path(), permissions).expect("ours");
            assert_eq!(is_open_to_all(file.path()), open, "{mode:o}");
        }
        assert!(!is_open_to_all(Path::new("/nowhere")));
    }
}
