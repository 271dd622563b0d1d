//! Metrics for collectors that do not ask over the control socket: a file for node_exporter, or HTTP on loopback.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::protocol::Request;
use super::socket::Asked;

/// How often the file is written: collectors look every 15 s or less often.
pub const WRITE_EVERY: Duration = Duration::from_secs(15);

/// The longest head of a request, in bytes.
const MOST_HEAD_BYTES: usize = 8 * 1024;

/// For a collector to ask and to take its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Collectors that are served at once.
const MOST_COLLECTORS: usize = 4;

/// Where metrics go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Export {
    /// A file for node_exporter's textfile collector; its name ends in `.prom`.
    pub file: Option<PathBuf>,
    /// A port on 127.0.0.1.
    pub port: Option<u16>,
}

/// Writes the file so that no collector ever sees half of it.
///
/// # Errors
/// The operating system's.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    // node_exporter reads *.prom only.
    name.push(".new");
    let new = path.with_file_name(name);
    fs::write(&new, text)?;
    fs::rename(&new, path)
}

/// Serves metrics over HTTP on loopback for ever.
///
/// # Errors
/// When the port cannot be had.
pub async fn serve(port: u16, asks: mpsc::Sender<Asked>) -> io::Result<Infallible> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
    let mut collectors = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if collectors.len() < MOST_COLLECTORS => match accepted {
                Ok((stream, _)) => {
                    let asks = asks.clone();
                    collectors.spawn(async move {
                        // Whoever hangs or is gone is left alone.
                        let _ = timeout(PATIENCE, answer(stream, asks)).await;
                    });
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            Some(_) = collectors.join_next() => {}
        }
    }
}

async fn answer(mut stream: TcpStream, asks: mpsc::Sender<Asked>) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if head.len() > MOST_HEAD_BYTES || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let wanted = head.starts_with(b"GET /metrics ") || head.starts_with(b"GET / ");
    let text = if wanted { metrics(&asks).await } else { None };
    let answer = match text {
        Some(text) => format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
            text.len()
        ),
        None => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".into(),
    };
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

async fn metrics(asks: &mpsc::Sender<Asked>) -> Option<String> {
    let (answer, answered) = oneshot::channel();
    let asked = Asked {
        request: Request::Metrics,
        answer,
        media: None,
    };
    asks.send(asked).await.ok()?;
    let fields = answered.await.ok()?.ok()?;
    match fields.get("prometheus") {
        Some(Value::String(text)) => Some(text.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_replaced_as_a_whole() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("cam.prom");
        for text in ["one\n", "two\n"] {
            write(&path, text).expect("written");
            assert_eq!(fs::read_to_string(&path).expect("is there"), text);
        }
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 1);
        assert!(write(&dir.path().join("none/cam.prom"), "").is_err());
    }
}
