//! `ringway check`: another back-end, examined. The cases are the `check` crate's.

use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use ringway_check::{CaseReport, Options, Report, Target, Verdict, run, statements};

use crate::args::Check;

/// Something that is a MUST failed.
const FAILED: u8 = 1;
/// The back-end, or the output, cannot be reached.
const IMPOSSIBLE: u8 = 2;

/// Runs the command; the exit status is by the result.
pub(crate) fn check(args: &Check) -> ExitCode {
    match try_check(args) {
        Ok(status) => status.into(),
        Err(error) => {
            eprintln!("ringway: {error:#}");
            IMPOSSIBLE.into()
        }
    }
}

fn try_check(args: &Check) -> Result<u8> {
    let Some(socket) = args.socket.as_ref().filter(|_| !args.list) else {
        return list().map(|()| 0).context("write to the standard output");
    };
    let target = if args.listen {
        let listener = UnixListener::bind(socket);
        Target::Listen(listener.with_context(|| format!("listen at {}", socket.display()))?)
    } else {
        Target::Connect(socket.clone())
    };
    let options = Options {
        device: args.device,
        only: args.only.clone(),
        hostile: args.hostile,
        patience: Duration::from_millis(args.patience),
    };
    let mut output = Ok(());
    let tell = |case: &CaseReport| {
        if !args.json && output.is_ok() {
            output = writeln!(io::stdout(), "{case}");
        }
    };
    let report = run(target, &options, tell);
    if args.listen {
        // It was made here, and would be in the way next time.
        let _ = std::fs::remove_file(socket);
    }
    let report = report.map_err(|verdict| anyhow::anyhow!(why(verdict)))?;
    output.and_then(|()| summarise(&report, args.json)).context("write to the standard output")?;
    let summary = report.summary();
    Ok(match (summary.failed_must, summary.errors) {
        (0, 0) => 0,
        (0, _) => IMPOSSIBLE,
        _ => FAILED,
    })
}

/// Why there is nothing to examine.
fn why(verdict: Verdict) -> String {
    match verdict {
        Verdict::Fail { expected, seen } => format!("the back-end does not answer: {expected}: {seen}"),
        Verdict::Skip(why) | Verdict::Error(why) => why,
    }
}

fn summarise(report: &Report, as_json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if as_json {
        return writeln!(out, "{:#}", report.to_json());
    }
    let Report { device, offer, .. } = report;
    writeln!(out, "\n{}", report.summary())?;
    write!(out, "a {device} device, features {:#x}, ", offer.features)?;
    writeln!(out, "protocol features {:#x}", offer.protocol_features)
}

fn list() -> io::Result<()> {
    let mut out = io::stdout().lock();
    for row in statements::rows() {
        writeln!(out, "{row}")?;
    }
    Ok(())
}
