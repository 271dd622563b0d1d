//! Payload memory: a fixed number of blocks, each made when none that was used before is free, and kept.
//!
//! A block is one `BytesMut` that never grows. Frames are cut off its front as [`Bytes`], which share its memory; once
//! the last of them is gone the block is whole again, without a copy and without an allocation. The block that came back
//! last goes out first, so what is resident follows the most that was held at once. Blocks are not made ahead of their
//! use: an allocator writes beside each, and so an untouched one has a page or two of its four resident.

use bytes::{Bytes, BytesMut};

/// The blocks that are not in use.
#[derive(Debug)]
pub(super) struct Pool {
    block_bytes: usize,
    total: usize,
    /// How many of them are there.
    made: usize,
    free: Vec<BytesMut>,
    /// Given back while the network still held a part of them. At most what the connection buffers.
    lent: Vec<BytesMut>,
}

impl Pool {
    /// A pool of `budget_bytes` in blocks of `block_bytes` each.
    pub(super) fn new(budget_bytes: usize, block_bytes: usize) -> Self {
        let total = budget_bytes / block_bytes;
        Self {
            block_bytes,
            total,
            made: 0,
            // The tables are of full size from the start.
            free: Vec::with_capacity(total),
            lent: Vec::with_capacity(total),
        }
    }

    pub(super) fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    pub(super) fn total_bytes(&self) -> usize {
        self.total * self.block_bytes
    }

    pub(super) fn free_bytes(&self) -> usize {
        self.free_blocks() * self.block_bytes
    }

    fn free_blocks(&self) -> usize {
        self.free.len() + (self.total - self.made)
    }

    /// Whether `count` blocks can be taken now.
    pub(super) fn has(&mut self, count: usize) -> bool {
        // First of all, not when nothing else is left: what has come back meanwhile is hot, and a new block would become
        // resident in its place.
        self.reclaim();
        self.free_blocks() >= count
    }

    /// An empty block. Ask [`Self::has`] first.
    pub(super) fn take(&mut self) -> BytesMut {
        self.free.pop().unwrap_or_else(|| {
            assert!(
                self.made < self.total,
                "the caller asked whether there is a block"
            );
            self.made += 1;
            BytesMut::with_capacity(self.block_bytes)
        })
    }

    /// Takes back a block. Parts of it that are still on their way out delay its reuse.
    pub(super) fn give(&mut self, mut block: BytesMut) {
        block.clear();
        if block.try_reclaim(self.block_bytes) {
            self.free.push(block);
        } else {
            self.lent.push(block);
        }
    }

    fn reclaim(&mut self) {
        let mut index = 0;
        while index < self.lent.len() {
            if self.lent[index].try_reclaim(self.block_bytes) {
                let block = self.lent.swap_remove(index);
                self.free.push(block);
            } else {
                index += 1;
            }
        }
    }
}

/// Moves as much of `bytes` as fits into `block`. Returns the part that was moved, sharing the block's memory, and the rest.
pub(super) fn fill<'a>(block: &mut BytesMut, bytes: &'a [u8]) -> &'a [u8] {
    let (now, later) = bytes.split_at(bytes.len().min(room(block)));
    block.extend_from_slice(now);
    later
}

/// Bytes that still fit into `block`.
pub(super) fn room(block: &BytesMut) -> usize {
    block.capacity() - block.len()
}

/// Cuts what was written since the last cut off the front of `block`.
pub(super) fn cut(block: &mut BytesMut) -> Bytes {
    block.split().freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_comes_back_whole_when_its_last_part_is_gone() {
        let mut pool = Pool::new(64, 32);
        let mut block = pool.take();
        let address = block.as_ptr();
        assert_eq!(fill(&mut block, &[1; 40]).len(), 8);
        let part = cut(&mut block);
        pool.give(block);
        assert!(!pool.has(2), "a part is still held");
        drop(part);
        assert!(pool.has(2));
        let block = pool.take();
        assert_eq!(
            (block.as_ptr(), room(&block)),
            (address, 32),
            "same memory, whole again"
        );
    }

    #[test]
    fn a_block_that_the_network_held_goes_out_before_a_new_one() {
        let mut pool = Pool::new(96, 32);
        let mut block = pool.take();
        let hot = block.as_ptr();
        fill(&mut block, &[1; 8]);
        let part = cut(&mut block);
        pool.give(block);
        drop(part);
        assert!(pool.has(1));
        assert_eq!(pool.take().as_ptr(), hot);
    }

    #[test]
    fn no_more_blocks_are_made_than_are_held_at_once() {
        let mut pool = Pool::new(96, 32);
        for _ in 0..10 {
            let blocks = [pool.take(), pool.take()];
            assert_eq!(pool.free_bytes(), 32);
            for block in blocks {
                pool.give(block);
            }
        }
        assert_eq!((pool.made, pool.free_bytes()), (2, 96));
    }

    #[test]
    fn the_block_given_back_last_goes_out_first() {
        let mut pool = Pool::new(96, 32);
        let (first, second) = (pool.take(), pool.take());
        let hot = second.as_ptr();
        pool.give(first);
        pool.give(second);
        assert_eq!(pool.take().as_ptr(), hot);
    }
}
