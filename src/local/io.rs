//! Sockets that can be broken on purpose, and hyper's view of them. IO.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::ReadBufCursor;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// A stalled connection that nobody gives up is reset after this time, so that it does not hold its socket for ever.
const STALL: Duration = Duration::from_secs(90);

/// How long the rest of a request is read after the answer: without it the client may see an RST in place of the answer.
const LINGER: Duration = Duration::from_secs(2);

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Open,
    Stalled,
    Ended(Ending),
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// With a FIN; what still comes is read.
    Fin,
    /// With an RST.
    Reset,
}

/// The switch of one connection.
#[derive(Debug)]
pub(super) struct Wire(watch::Sender<Fate>);

impl Wire {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(Fate::Open))
    }

    /// From now on nothing is read or written.
    pub(super) fn stall(&self) {
        self.0.send_replace(Fate::Stalled);
    }

    /// Ends the connection.
    pub(super) fn end(&self, ending: Ending) {
        self.0.send_replace(Fate::Ended(ending));
    }

    /// Waits until the connection has to end.
    pub(super) async fn ended(&self) -> Ending {
        let mut fate = self.0.subscribe();
        loop {
            match *fate.borrow_and_update() {
                Fate::Open => {}
                Fate::Stalled => break,
                Fate::Ended(ending) => return ending,
            }
            let changed = fate.changed().await;
            changed.expect("the sender is borrowed");
        }
        sleep(STALL).await;
        Ending::Reset
    }

    fn stalled(&self) -> bool {
        *self.0.borrow() == Fate::Stalled
    }
}

/// Ends the connection behind `socket`, a duplicate of one whose first owner is gone.
pub(super) async fn finish(socket: std::net::TcpStream, ending: Ending) -> io::Result<()> {
    let mut socket = TcpStream::from_std(socket)?;
    match ending {
        Ending::Reset => socket.set_zero_linger(),
        Ending::Fin => {
            tokio::io::AsyncWriteExt::shutdown(&mut socket).await?;
            let mut rest = [0; 4096];
            let drain = async {
                while socket.read(&mut rest).await? > 0 {}
                Ok(())
            };
            timeout(LINGER, drain).await.unwrap_or(Ok(()))
        }
    }
}

/// A socket that its [`Wire`] can stall.
#[derive(Debug)]
pub(super) struct Tap<'a> {
    pub(super) socket: TcpStream,
    pub(super) wire: &'a Wire,
}

impl AsyncRead for Tap<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.wire.stalled() {
            return Poll::Pending; // nobody wakes it: `Wire::ended` ends the connection
        }
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tap<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.wire.stalled() {
            return Poll::Pending;
        }
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.wire.stalled() {
            return Poll::Pending;
        }
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// A tokio stream as hyper wants it.
#[derive(Debug)]
pub(super) struct Io<T> {
    stream: T,
    /// hyper lends memory that is not initialised; this is the way to it without `unsafe`, at the price of a copy.
    buffer: Box<[u8]>,
}

impl<T> Io<T> {
    pub(super) fn new(stream: T) -> Self {
        Self {
            stream,
            buffer: vec![0; 16 << 10].into(),
        }
    }
}

impl<T: AsyncRead + Unpin> hyper::rt::Read for Io<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let room = cursor.remaining().min(this.buffer.len());
        let mut buffer = ReadBuf::new(&mut this.buffer[..room]);
        let read = Pin::new(&mut this.stream).poll_read(cx, &mut buffer);
        if let Poll::Ready(Ok(())) = read {
            cursor.put_slice(buffer.filled());
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> hyper::rt::Write for Io<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
