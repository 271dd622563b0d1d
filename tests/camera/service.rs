//! The local endpoint, on a thread of the test: the program that is shipped has none in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};

use kvs_producer_app::local::view::{State, View};
use kvs_producer_app::local::{Credential, Endpoint, Options};
use kvs_producer_app::shutdown::{self, Trigger};
use rustls::ServerConfig;
use tempfile::TempDir;
use tokio::sync::watch::Ref;

/// Runs as long as the value lives.
pub struct Service {
    url: String,
    view: View,
    recordings: TempDir,
    trigger: Option<Trigger>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    pub fn start() -> Self {
        let recordings = tempfile::tempdir().unwrap();
        let options = Options {
            directory: Some(recordings.path().to_owned()),
            ..Options::default()
        };
        Self::with(options, recordings)
    }

    /// Speaks TLS, and records nothing.
    pub fn secure(server: ServerConfig) -> Self {
        let options = Options {
            tls: Some(Arc::new(server)),
            ..Options::default()
        };
        Self::with(options, tempfile::tempdir().unwrap())
    }

    fn with(options: Options, recordings: TempDir) -> Self {
        let (trigger, shutdown) = shutdown::pair().unwrap();
        let (started, result) = channel();
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let endpoint = Endpoint::start(options).await.unwrap();
                started.send((endpoint.url(), endpoint.view())).unwrap();
                endpoint.serve_until(shutdown).await;
            });
        };
        let thread = thread::Builder::new().spawn(serve).unwrap();
        let (url, view) = result.recv().unwrap();
        Self {
            url,
            view,
            recordings,
            trigger: Some(trigger),
            thread: Some(thread),
        }
    }

    /// What leads a producer here, and nowhere else.
    pub fn environment(&self) -> [(&'static str, String); 5] {
        let known = Credential::default();
        [
            ("AWS_ENDPOINT_URL_KINESIS_VIDEO", self.url.clone()),
            ("AWS_ACCESS_KEY_ID", known.access_key_id),
            ("AWS_SECRET_ACCESS_KEY", known.secret_access_key),
            ("AWS_REGION", "us-west-2".to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ]
    }

    /// What has come.
    pub fn state(&self) -> Ref<'_, State> {
        self.view.state()
    }

    /// The channel's recordings, in the order of time; a new one begins where the format changes.
    pub fn recordings(&self, channel: &str) -> Vec<Vec<u8>> {
        let in_directory = |directory: &Path| -> Vec<PathBuf> {
            let entries = fs::read_dir(directory).unwrap();
            let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
            files.sort();
            files
        };
        in_directory(&self.recordings.path().join(channel))
            .iter()
            .map(|file| fs::read(file).unwrap())
            .collect()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.trigger.take());
        let result = self.thread.take().map(JoinHandle::join);
        if !thread::panicking() {
            let result = result.expect("it is taken once");
            result.expect("the service ended well");
        }
    }
}
