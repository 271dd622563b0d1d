//! One [`Ring`] between the capture thread, the request body and control.
//!
//! The mutex is the program's only lock. It is held for a push, a frame handed over or a look, never across an `.await`.

use std::future::poll_fn;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, TryLockError};
use std::task::{Poll, Waker};
use std::time::Duration;

use super::{Counts, DropReason, NewFrame, Push, Ring, WhenFull};
use crate::frame::{CameraLosses, Payload};
use crate::shutdown::Shutdown;

/// How long a writer that waits for room sleeps at most before it looks again: blocks that the network held come back
/// without a word.
const ROOM_POLL: Duration = Duration::from_millis(20);

#[derive(Debug)]
struct Inner {
    ring: Ring,
    /// The request body, woken when there is something new to send.
    body: Option<Waker>,
    /// Control, while it waits for the first frame.
    control: Option<Waker>,
    /// Whoever looks how it goes, while nothing does.
    watcher: Option<Waker>,
    /// The writer waits for room. Else nobody is to be told of it: a condition variable makes a system call whether
    /// somebody waits or not, and these would be three for a frame.
    writer_waits: bool,
}

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    room: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere ends the program in order; until then the ring is whole: no push or take stops half way.
        self.inner
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Ends a reader's turn: it may have made room.
    fn unlock(&self, inner: MutexGuard<'_, Inner>) {
        let waited_for = inner.writer_waits;
        drop(inner);
        if waited_for {
            self.room.notify_one();
        }
    }
}

/// The capture thread's end. Dropping it closes the ring.
#[derive(Debug)]
pub struct Writer(Arc<Shared>);

/// The end of whoever reads and answers: request bodies, control, the status line. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader(Arc<Shared>);

/// Splits a ring between its writer and its readers.
pub fn share(ring: Ring) -> (Writer, Reader) {
    let reader = Reader::new(ring);
    (reader.writer(), reader)
}

impl Writer {
    /// [`Ring::push`]; with [`WhenFull::Wait`] blocks until there is room. `None` when the shutdown came first.
    pub fn push<P: Payload + ?Sized>(
        &mut self,
        frame: NewFrame<'_>,
        payload: &P,
        when_full: WhenFull,
        shutdown: &Shutdown,
    ) -> Option<Push> {
        let mut inner = self.0.lock();
        loop {
            match inner.ring.push(frame, payload, when_full) {
                Push::Full if shutdown.requested() => return None,
                Push::Full => {
                    // A full ring is also a reason to send.
                    Self::wake(inner);
                    let mut full = self.0.lock();
                    full.writer_waits = true;
                    let waited = self.0.room.wait_timeout(full, ROOM_POLL);
                    inner = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
                    inner.writer_waits = false;
                }
                done => {
                    Self::wake(inner);
                    return Some(done);
                }
            }
        }
    }

    /// Payload memory in all, in bytes.
    pub fn capacity(&self) -> usize {
        self.0.lock().ring.fill().total_bytes
    }

    /// [`Ring::drop_frame`].
    pub fn drop_frame(&mut self, len: usize, reason: DropReason) -> DropReason {
        self.with(|ring| ring.drop_frame(len, reason))
    }

    /// [`Ring::camera_lost`].
    pub fn camera_lost(&mut self, more: CameraLosses) {
        self.with(|ring| ring.camera_lost(more));
    }

    /// [`Ring::fall_silent`].
    pub fn fall_silent(&mut self) {
        self.with(Ring::fall_silent);
    }

    fn with<T>(&self, act: impl FnOnce(&mut Ring) -> T) -> T {
        let mut inner = self.0.lock();
        let result = act(&mut inner.ring);
        Self::wake(inner);
        result
    }

    /// Wakes the reader after the lock is gone, so that it does not run into it.
    fn wake(mut inner: MutexGuard<'_, Inner>) {
        let wakers = [
            inner.body.take(),
            inner.control.take(),
            inner.watcher.take(),
        ];
        drop(inner);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.with(Ring::close);
    }
}

impl Reader {
    /// The readers' end of a ring that nobody writes to yet.
    pub fn new(ring: Ring) -> Self {
        Self(Arc::new(Shared {
            inner: Mutex::new(Inner {
                ring,
                body: None,
                control: None,
                watcher: None,
                writer_waits: false,
            }),
            room: Condvar::new(),
        }))
    }

    /// The writer's end. There is to be one, or one more that takes over from one whose thread was lost.
    pub fn writer(&self) -> Writer {
        Writer(Arc::clone(&self.0))
    }

    /// Whether nobody holds the lock just now. Never waits.
    pub fn is_free(&self) -> bool {
        !matches!(self.0.inner.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// Runs `act` under the lock. It must be short: the camera waits meanwhile.
    pub fn with<T>(&self, act: impl FnOnce(&mut Ring) -> T) -> T {
        let mut inner = self.0.lock();
        let result = act(&mut inner.ring);
        self.0.unlock(inner);
        result
    }

    /// For the request body: as [`Self::with`]; when `act` says `None`, `waker` is woken at the next change.
    pub fn with_or_wait<T>(
        &self,
        waker: &Waker,
        act: impl FnOnce(&mut Ring) -> Option<T>,
    ) -> Option<T> {
        let mut inner = self.0.lock();
        let result = act(&mut inner.ring);
        if result.is_none() {
            inner.body = Some(waker.clone());
        }
        self.0.unlock(inner);
        result
    }

    /// Wakes the request body, to look at more than the ring.
    pub fn wake_body(&self) {
        let waker = self.0.lock().body.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Waits until the camera has brought something, or lost it, since the ring counted like this.
    pub async fn moved_on(&self, from: &Counts) {
        poll_fn(|context| {
            let mut inner = self.0.lock();
            if inner.ring.counts() != *from {
                return Poll::Ready(());
            }
            inner.watcher = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// For control: waits until there is something to send.
    pub async fn unsent(&self) {
        poll_fn(|context| {
            let mut inner = self.0.lock();
            if inner.ring.has_unsent() {
                return Poll::Ready(());
            }
            inner.control = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::MIN_BUDGET_BYTES;

    #[tokio::test]
    async fn whoever_watches_hears_of_what_happens_and_of_what_has_happened() {
        let (mut writer, reader) = share(Ring::new(MIN_BUDGET_BYTES));
        let before = reader.with(|ring| ring.counts());
        let lose = async { writer.drop_frame(1, DropReason::CameraGap) };
        let watch = tokio::time::timeout(Duration::from_secs(10), reader.moved_on(&before));
        let (heard, _) = tokio::join!(watch, lose);
        heard.expect("it is woken");
        reader.moved_on(&before).await;
    }
}
