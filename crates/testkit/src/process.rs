//! A peer's process: started, watched line by line, and ended by its own pid (or its own process group)
//! when dropped.
//!
//! Output (stdout and stderr together) is collected by threads, so a chatty peer never blocks, and a
//! failure can show the last lines it said. Every wait has a time limit.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, kill_process, kill_process_group, set_child_subreaper, waitpid,
};

/// Set by [`interrupt`].
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes every wait fail from now on, so that whoever waits ends and cleans up: for a program that was asked to
/// end.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Whether [`interrupt`] was called.
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// What a process has printed so far, shared with the threads that read it.
#[derive(Default)]
struct Output {
    text: Mutex<String>,
    grew: Condvar,
    /// How many of the threads have come to their stream's end: after two, no more text will come.
    ended: AtomicUsize,
}

impl Output {
    fn text(&self) -> MutexGuard<'_, String> {
        self.text.lock().expect("no thread panics while it holds the lock")
    }

    /// Waits for more text, at most for `limit`.
    fn more<'a>(&self, text: MutexGuard<'a, String>, limit: Duration) -> MutexGuard<'a, String> {
        self.grew.wait_timeout(text, limit).expect("no thread panics while it holds the lock").0
    }
}

/// A running peer. Dropping it kills it (SIGKILL) and reaps it.
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    output: Arc<Output>,
    /// Whether it leads a process group of its own.
    leads_group: bool,
    heir: Option<Heir>,
}

/// A process that took another's place.
struct Heir {
    pid: Pid,
    /// It has ended like this.
    status: Option<ExitStatus>,
}

impl Heir {
    fn try_wait(&mut self) -> std::io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            let ended = waitpid(Some(self.pid), WaitOptions::NOHANG)?;
            self.status = ended.map(|(_, status)| ExitStatus::from_raw(status.as_raw()));
        }
        Ok(self.status)
    }

    fn kill(&mut self) {
        if self.status.is_none() && kill_process(self.pid, Signal::KILL).is_ok() {
            let _ = waitpid(Some(self.pid), WaitOptions::empty());
        }
    }
}

/// Orphans of processes started from now on come to this process, which can wait for them then.
pub fn adopt_orphans() -> Result<()> {
    set_child_subreaper(Some(getpid())).context("cannot adopt orphans")
}

impl Process {
    /// Starts `command` with its standard streams piped; `name` stands in messages.
    pub fn start(name: &str, command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{name}: cannot start {command:?}"))?;
        let output = Arc::new(Output::default());
        let streams: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|s| Box::new(s) as Box<dyn Read + Send>),
            child.stderr.take().map(|s| Box::new(s) as Box<dyn Read + Send>),
        ];
        for stream in streams.into_iter().flatten() {
            let output = Arc::clone(&output);
            std::thread::spawn(move || {
                collect(stream, &output);
                output.ended.fetch_add(1, Ordering::Release);
                output.grew.notify_all();
            });
        }
        let stdin = child.stdin.take();
        Ok(Self { name: name.to_owned(), child, stdin, output, leads_group: false, heir: None })
    }

    /// Like [`Process::start`], for a program that starts further processes: it gets a process group of
    /// its own, and killing it kills the whole group. (Ctrl-C on the terminal then no longer reaches it.)
    pub fn start_group(name: &str, command: &mut Command) -> Result<Self> {
        let mut process = Self::start(name, command.process_group(0))?;
        process.leads_group = true;
        Ok(process)
    }

    /// The name given at the start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.heir.as_ref().map_or_else(|| self.child.id(), |heir| heir.pid.as_raw_pid().cast_unsigned())
    }

    /// From now on this is process `pid`, which the one before started with its own output before it ended, after
    /// [`adopt_orphans`]. Returns how that one ended.
    pub fn follow(&mut self, pid: u32, limit: Duration) -> Result<ExitStatus> {
        let status = self.wait(limit)?;
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a pid is positive")?;
        self.heir = Some(Heir { pid, status: None });
        Ok(status)
    }

    /// Everything printed so far.
    pub fn output(&self) -> String {
        self.output.text().clone()
    }

    /// Writes `text` to the process's standard input.
    pub fn write(&mut self, text: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().with_context(|| format!("{}: its input is closed", self.name))?;
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).context("write to a peer")
    }

    /// Waits until the output from byte `from` on contains `needle`; returns the offset just past it.
    pub fn wait_for_from(&self, from: usize, needle: &str, limit: Duration) -> Result<usize> {
        let deadline = Instant::now() + limit;
        let mut text = self.output.text();
        loop {
            let ended = self.output.ended.load(Ordering::Acquire) == 2;
            if let Some(at) = text.get(from..).and_then(|t| t.find(needle)) {
                return Ok(from + at + needle.len());
            }
            if ended {
                bail!("{}: ended without {needle:?}; it said:\n{}", self.name, tail(&text));
            }
            if INTERRUPTED.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{}: no {needle:?} within {limit:?}; it said:\n{}", self.name, tail(&text));
            }
            // The end is announced without the lock, so it could be missed; short waits bound the delay.
            let step = left.min(Duration::from_millis(200));
            text = self.output.more(text, step);
        }
    }

    /// Waits until the output contains `needle`.
    pub fn wait_for(&self, needle: &str, limit: Duration) -> Result<usize> {
        self.wait_for_from(0, needle, limit)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.raw_pid()?, signal).with_context(|| format!("{}: cannot signal", self.name))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.try_wait(), Ok(None))
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.try_wait().context("wait for a peer")? {
                return Ok(status);
            }
            if INTERRUPTED.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            if Instant::now() >= deadline {
                bail!("{}: still running after {limit:?}; it said:\n{}", self.name, tail(&self.output()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGTERM, then the exit status; SIGKILL and an error if it does not end in time.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(limit)
    }

    /// SIGKILL to it (and to its group, if it leads one), then reap.
    pub fn kill(&mut self) {
        // It may have ended by itself; these calls then have nothing to do.
        self.kill_group();
        if let Some(heir) = &mut self.heir {
            heir.kill();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Reaps it if it has ended, and kills what is left of its group.
    fn try_wait(&mut self) -> std::io::Result<Option<ExitStatus>> {
        if let Some(heir) = &mut self.heir {
            return heir.try_wait();
        }
        let status = self.child.try_wait()?;
        if status.is_some() {
            self.kill_group();
        }
        Ok(status)
    }

    /// Kills its group, once: when all of it has ended, the number may come to be another's.
    fn kill_group(&mut self) {
        if let (true, Ok(group)) = (std::mem::take(&mut self.leads_group), self.raw_pid()) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    fn raw_pid(&self) -> Result<Pid> {
        i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("a pid is positive")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- {} said:\n{}", self.name, tail(&self.output()));
        }
    }
}

/// Reads a stream to its end into `output`.
fn collect(stream: Box<dyn Read + Send>, output: &Output) {
    let mut reader = BufReader::new(stream);
    loop {
        let (taken, text) = match reader.fill_buf() {
            Ok([]) | Err(_) => return,
            Ok(bytes) => (bytes.len(), String::from_utf8_lossy(bytes).into_owned()),
        };
        reader.consume(taken);
        output.text().push_str(&text);
        output.grew.notify_all();
    }
}

/// The last lines of a text.
fn tail(text: &str) -> &str {
    let start = text.char_indices().rev().filter(|(_, c)| *c == '\n').nth(40).map_or(0, |(i, _)| i + 1);
    &text[start..]
}

/// The directory of built images and downloads, `target/` of the workspace.
pub fn target_dir() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target")
}

/// The path of a program on `PATH`, or an error that says how to get it.
pub fn find_program(name: &str) -> Result<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|p| p.is_file())
        .with_context(|| {
            format!("{name} is not installed; run guests/setup.sh as root (or install it with apt)")
        })
}
