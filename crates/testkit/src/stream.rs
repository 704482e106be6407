//! One long TCP session with a guest, whose every byte is checked: what is sent is made from its position, the
//! guest sends it back, and what comes back is compared.
//!
//! So a byte that a server loses, repeats or changes on the way in either direction is found where it happens,
//! and so is a session that stands still. It is not a benchmark: the guest's copying is part of its rate.
//!
//! ```no_run
//! # use std::{net::TcpListener, time::Duration};
//! # use ringway_testkit::{guest::Guest, netns::Netns, stream::{ECHO, Echo}};
//! # fn test(host: &Netns, guest: &mut Guest) -> anyhow::Result<()> {
//! let listener = host.enter(|| TcpListener::bind("10.0.0.1:7"))??;
//! guest.start_background(&format!("nc 10.0.0.1 7 -e {ECHO}"), "/tmp/echo.log")?;
//! let echo = Echo::accept(&listener, Duration::from_secs(5))?;
//! echo.wait_for(1 << 20, Duration::from_secs(5))?;
//! println!("{} bytes came back", echo.finish(Duration::from_secs(5))?);
//! # Ok(()) }
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

/// What a guest runs with the connection as its input and output.
pub const ECHO: &str = "dd bs=64k status=none";

/// How often a thread that waits for its socket looks whether it is to end.
const STEP: Duration = Duration::from_millis(100);

/// Bytes `from..` of the stream. Every eight of them are a number of their own, so none can stand for another.
pub fn fill(from: u64, bytes: &mut [u8]) {
    for (byte, at) in bytes.iter_mut().zip(from..) {
        *byte = mix(at / 8).to_le_bytes()[(at % 8) as usize];
    }
}

/// The finaliser of `SplitMix64`.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Waits for one connection.
pub fn accept(listener: &TcpListener, limit: Duration) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + limit;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                ensure!(Instant::now() < deadline, "no connection within {limit:?}");
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// A session under way. Dropped, it is closed.
pub struct Echo {
    shared: Arc<Shared>,
    socket: TcpStream,
    threads: Vec<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    /// Bytes that have come back as they were sent.
    checked: AtomicU64,
    /// Nothing more is to be sent.
    stop: AtomicBool,
    /// In microseconds.
    longest_pause: AtomicU64,
}

impl Echo {
    /// Waits for the guest to connect, and begins.
    pub fn accept(listener: &TcpListener, limit: Duration) -> Result<Self> {
        let socket = accept(listener, limit)?;
        socket.set_read_timeout(Some(STEP))?;
        socket.set_write_timeout(Some(STEP))?;
        let shared = Arc::new(Shared::default());
        let [sender, checker] = [socket.try_clone()?, socket.try_clone()?];
        let [for_sender, for_checker] = [Arc::clone(&shared), Arc::clone(&shared)];
        let threads = vec![
            std::thread::spawn(move || send(sender, &for_sender)),
            std::thread::spawn(move || check(checker, &for_checker)),
        ];
        Ok(Self { shared, socket, threads })
    }

    /// How many bytes have come back as they were sent.
    pub fn checked(&self) -> u64 {
        self.shared.checked.load(Ordering::Relaxed)
    }

    /// The longest time between any two pieces that came back, since the last time this was asked.
    pub fn take_longest_pause(&self) -> Duration {
        Duration::from_micros(self.shared.longest_pause.swap(0, Ordering::Relaxed))
    }

    /// Waits until so many bytes more have come back; returns how long that took.
    pub fn wait_for(&self, bytes: u64, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        let from = self.checked();
        while self.checked() < from + bytes {
            let moved = self.checked() - from;
            ensure!(start.elapsed() < limit, "only {moved} of {bytes} bytes came back within {limit:?}");
            ensure!(!self.threads.iter().any(JoinHandle::is_finished), "the session has ended");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(start.elapsed())
    }

    /// Sends no more, waits until all has come back and the guest has closed; returns how much it was.
    pub fn finish(mut self, limit: Duration) -> Result<u64> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + limit;
        while !self.threads.iter().all(JoinHandle::is_finished) {
            ensure!(Instant::now() < deadline, "the guest has not closed within {limit:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a panic in a thread of the session"))??;
        }
        Ok(self.checked())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn send(mut socket: TcpStream, shared: &Shared) -> Result<()> {
    let mut chunk = vec![0; 64 << 10];
    let mut sent = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        fill(sent, &mut chunk);
        match socket.write(&chunk) {
            Ok(n) => sent += n as u64,
            Err(e) if is_timeout(&e) => {}
            Err(e) => return Err(e).with_context(|| format!("send to the guest after {sent} bytes")),
        }
    }
    socket.shutdown(Shutdown::Write).context("close towards the guest")
}

fn check(mut socket: TcpStream, shared: &Shared) -> Result<()> {
    let mut received = vec![0; 64 << 10];
    let mut expected = vec![0; 64 << 10];
    let mut last = Instant::now();
    loop {
        let at = shared.checked.load(Ordering::Relaxed);
        let len = match socket.read(&mut received) {
            Ok(0) if shared.stop.load(Ordering::Relaxed) => return Ok(()),
            Ok(0) => bail!("the guest has closed after {at} bytes"),
            Ok(n) => n,
            Err(e) if is_timeout(&e) => continue,
            Err(e) => return Err(e).with_context(|| format!("receive from the guest after {at} bytes")),
        };
        fill(at, &mut expected[..len]);
        if let Some(wrong) = (0..len).find(|&i| received[i] != expected[i]) {
            bail!("byte {} came back wrong", at + wrong as u64);
        }
        shared.checked.store(at + len as u64, Ordering::Relaxed);
        let pause = u64::try_from(last.elapsed().as_micros()).unwrap_or(u64::MAX);
        shared.longest_pause.fetch_max(pause, Ordering::Relaxed);
        last = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A peer that echoes, but for what `spoil` does to a piece at a position.
    fn peer(listener: &TcpListener, spoil: fn(u64, &mut [u8])) -> JoinHandle<()> {
        let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        std::thread::spawn(move || {
            let (mut at, mut bytes) = (0, [0; 4096]);
            while let Ok(len @ 1..) = socket.read(&mut bytes) {
                spoil(at, &mut bytes[..len]);
                at += len as u64;
                if socket.write_all(&bytes[..len]).is_err() {
                    return;
                }
            }
        })
    }

    #[test]
    fn an_honest_peer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let thread = peer(&listener, |_, _| ());
        let echo = Echo::accept(&listener, LIMIT).unwrap();
        echo.wait_for(1 << 20, LIMIT).unwrap();
        assert!(echo.finish(LIMIT).unwrap() >= 1 << 20);
        thread.join().unwrap();
    }

    #[test]
    fn a_wrong_byte_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let thread = peer(&listener, |at, bytes| {
            if (at..at + bytes.len() as u64).contains(&100_000) {
                bytes[(100_000 - at) as usize] ^= 1;
            }
        });
        let echo = Echo::accept(&listener, LIMIT).unwrap();
        assert!(echo.wait_for(1 << 30, LIMIT).is_err());
        assert_eq!(echo.checked().min(100_000), echo.checked(), "what is wrong does not count");
        let error = echo.finish(LIMIT).unwrap_err().to_string();
        assert!(error.contains("byte 100000 "), "{error}");
        thread.join().unwrap();
    }
}
