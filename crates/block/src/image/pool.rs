//! Threads for images whose calls block.
//!
//! ```text
//!   submit ──► waiting ──► thread ──► BlockingImage ──► Job::done
//! ```
//!
//! A thread is started when a job comes and none is idle, up to a limit, and ends when it has been idle for [`LINGER`]: a disk
//! that nobody uses has none. How many jobs wait is bounded by the queues that they come from.
//!
//! Not here: any order. A flush covers what was done before it was submitted.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::job::{BlockingImage, Executor, Job};

/// The most threads of a pool, if nothing is said: as many requests as a device is commonly given at once.
const MAX_THREADS: usize = 64;
/// How long an idle thread stays.
const LINGER: Duration = Duration::from_secs(2);
/// Requests need little, images in a format more.
const STACK_LEN: usize = 256 << 10;

/// Carries out jobs on an image.
pub struct Pool(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// There is a job to take, or the pool is gone.
    wake: Condvar,
}

struct State {
    /// None once the pool is gone and nothing waits: an idle thread keeps no image open, and locked.
    image: Option<Arc<dyn BlockingImage>>,
    waiting: VecDeque<Job>,
    threads: usize,
    most_threads: usize,
    idle: usize,
}

impl Pool {
    /// A pool without threads yet.
    pub fn new(image: Arc<dyn BlockingImage>) -> Self {
        Self::with_most_threads(image, MAX_THREADS)
    }

    /// A pool without threads yet, that will have so many at most.
    pub fn with_most_threads(image: Arc<dyn BlockingImage>, most_threads: usize) -> Self {
        let waiting = VecDeque::new();
        let state = State { image: Some(image), waiting, threads: 0, most_threads, idle: 0 };
        Self(Arc::new(Shared { state: state.into(), wake: Condvar::new() }))
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.0.lock().threads
    }
}

impl Executor for Pool {
    fn submit(&self, jobs: &mut Vec<Job>) {
        let mut state = self.0.lock();
        state.waiting.extend(jobs.drain(..));
        let wanted = state.waiting.len();
        for _ in 0..wanted.min(state.idle) {
            self.0.wake.notify_one();
        }
        for _ in 0..wanted.saturating_sub(state.idle).min(state.most_threads - state.threads) {
            let shared = Arc::clone(&self.0);
            let builder = thread::Builder::new().name("blk-pool".to_owned()).stack_size(STACK_LEN);
            match builder.spawn(move || shared.work()) {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => {
                    // Nobody would ever take them.
                    state.waiting.drain(..).for_each(|job| job.done(Err(again(&error))));
                    break;
                }
                Err(_) => break,
            }
        }
    }
}

fn again(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

/// What is begun is still done, and what it needs kept until then. Nothing waits: who does has the pool.
impl Drop for Pool {
    fn drop(&mut self) {
        let image = self.0.lock().image.take();
        self.0.wake.notify_all();
        drop(image);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread's life.
    fn work(&self) {
        while let Some((job, image)) = self.next_job() {
            let result = job.operation().carry_out(&*image, job.data());
            // Whoever hears that it is done finds the image closed if it was the last.
            drop(image);
            job.done(result);
        }
    }

    /// Waits for a job. None if the thread is to end; it is not counted any more then.
    fn next_job(&self) -> Option<(Job, Arc<dyn BlockingImage>)> {
        let mut state = self.lock();
        let mut is_late = false;
        loop {
            if let (Some(image), false) = (&state.image, state.waiting.is_empty()) {
                let image = Arc::clone(image);
                return state.waiting.pop_front().map(|job| (job, image));
            }
            if state.image.is_none() || is_late {
                // Without an image they have failed.
                state.waiting.clear();
                state.threads -= 1;
                return None;
            }
            state.idle += 1;
            let (guard, timeout) =
                self.wake.wait_timeout(state, LINGER).unwrap_or_else(PoisonError::into_inner);
            state = guard;
            state.idle -= 1;
            is_late = timeout.timed_out();
        }
    }
}
