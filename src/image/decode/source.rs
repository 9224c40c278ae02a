//! A reader that can look ahead, and that remembers whether it was read past its end.

use std::io::{self, BufRead, Read};

pub struct Source<R> {
    inner: R,
    ahead: Vec<u8>,
    /// Somebody asked for more than there was since this was last set to false.
    pub hit_end: bool,
}

impl<R: BufRead> Source<R> {
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            ahead: Vec::new(),
            hit_end: false,
        }
    }

    /// Up to `count` bytes of what comes next; fewer only at the end.
    pub fn peek(&mut self, count: usize) -> io::Result<&[u8]> {
        while self.ahead.len() < count {
            let available = self.inner.fill_buf()?;
            let taken = available.len().min(count - self.ahead.len());
            if taken == 0 {
                break;
            }
            self.ahead.extend_from_slice(&available[..taken]);
            self.inner.consume(taken);
        }
        Ok(&self.ahead[..self.ahead.len().min(count)])
    }
}

impl<R: BufRead> BufRead for Source<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if !self.ahead.is_empty() {
            return Ok(&self.ahead);
        }
        let available = self.inner.fill_buf()?;
        self.hit_end |= available.is_empty();
        Ok(available)
    }

    fn consume(&mut self, amount: usize) {
        if self.ahead.is_empty() {
            self.inner.consume(amount);
        } else {
            self.ahead.drain(..amount);
        }
    }
}

impl<R: BufRead> Read for Source<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let available = self.fill_buf()?;
        let count = available.len().min(into.len());
        into[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}
