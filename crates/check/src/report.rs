//! What came out: for people a table, for programs JSON.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::case::{Case, Level, Seen, Verdict};
use crate::context::Offer;
use crate::device::Device;

/// What a case came to.
pub struct CaseReport {
    /// What it is about.
    pub chapter: &'static str,
    /// The case.
    pub case: &'static Case,
    /// What was seen, or why it did not pass.
    pub result: Seen,
    /// How long it took.
    pub time: Duration,
    /// What was sent to the back-end.
    pub sent: Vec<String>,
}

/// Requests that a table shows of a case that failed, the last ones.
const SHOWN: usize = 12;

impl CaseReport {
    pub(crate) fn new(chapter: &'static str, case: &'static Case, result: Seen) -> Self {
        Self { chapter, case, result, time: Duration::ZERO, sent: Vec::new() }
    }

    /// The failure that the back-end was lost by this case.
    pub(crate) fn after(&self, verdict: Verdict) -> Verdict {
        let lost = match verdict {
            Verdict::Fail { expected, seen } => format!("{expected}: {seen}"),
            Verdict::Skip(why) | Verdict::Error(why) => why,
        };
        let before = match &self.result {
            Err(Verdict::Fail { seen, .. }) => format!("{seen}; "),
            _ => String::new(),
        };
        let expected = "the next front-end is served".into();
        Verdict::Fail { expected, seen: format!("{before}the next front-end is not served: {lost}") }
    }

    /// `PASS`, `FAIL`, `skip` or `error`.
    pub fn word(&self) -> &'static str {
        match self.result {
            Ok(_) => "PASS",
            Err(Verdict::Fail { .. }) => "FAIL",
            Err(Verdict::Skip(_)) => "skip",
            Err(Verdict::Error(_)) => "error",
        }
    }

    /// The first requirement that it shows; its own name if it has none.
    pub fn id(&self) -> &'static str {
        self.case.ids.first().unwrap_or(&self.case.name)
    }

    fn to_json(&self) -> Value {
        let (seen, expected) = match &self.result {
            Ok(seen) => (seen, Value::Null),
            Err(Verdict::Fail { expected, seen }) => (seen, expected.as_str().into()),
            Err(Verdict::Skip(why) | Verdict::Error(why)) => (why, Value::Null),
        };
        json!({
            "case": self.case.name,
            "chapter": self.chapter,
            "ids": self.case.ids,
            "level": self.case.level.to_string(),
            "title": self.case.title,
            "hostile": self.case.hostile,
            "result": self.word().to_lowercase(),
            "seen": seen,
            "expected": expected,
            "sent": self.sent,
            "milliseconds": self.time.as_millis() as u64,
        })
    }
}

/// A line of the table, and what a failure needs below it.
impl fmt::Display for CaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { name, level, title, .. } = self.case;
        write!(f, "{:5} {level:6} {:46} {name}: ", self.word(), self.id())?;
        match &self.result {
            Ok(seen) | Err(Verdict::Skip(seen) | Verdict::Error(seen)) => write!(f, "{seen}"),
            Err(Verdict::Fail { expected, seen }) => {
                let first = self.sent.len().saturating_sub(SHOWN);
                let more = if first > 0 { "… " } else { "" };
                write!(f, "{title}\n        expected: {expected}\n        seen: {seen}")?;
                write!(f, "\n        after: {more}{}", self.sent[first..].join(", "))
            }
        }
    }
}

/// How many cases came to what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Passed.
    pub passed: usize,
    /// Failed what is a MUST.
    pub failed_must: usize,
    /// Failed what is a SHOULD or MAY.
    pub failed_other: usize,
    /// Not for this back-end.
    pub skipped: usize,
    /// Not tried.
    pub errors: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed_must, failed_other, skipped, errors } = self;
        write!(f, "{passed} passed, {failed_must} failed (MUST), {failed_other} failed (SHOULD, MAY), ")?;
        write!(f, "{skipped} skipped, {errors} not tried")
    }
}

/// All of a run.
pub struct Report {
    /// What the back-end was taken for.
    pub device: Device,
    /// What it offers.
    pub offer: Offer,
    /// The cases in the order in which they were tried.
    pub cases: Vec<CaseReport>,
}

impl Report {
    /// How many cases came to what.
    pub fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        for report in &self.cases {
            let count = match (&report.result, report.case.level) {
                (Ok(_), _) => &mut summary.passed,
                (Err(Verdict::Fail { .. }), Level::Must) => &mut summary.failed_must,
                (Err(Verdict::Fail { .. }), _) => &mut summary.failed_other,
                (Err(Verdict::Skip(_)), _) => &mut summary.skipped,
                (Err(Verdict::Error(_)), _) => &mut summary.errors,
            };
            *count += 1;
        }
        summary
    }

    /// What a program can read; docs/check.md names the fields.
    pub fn to_json(&self) -> Value {
        let Summary { passed, failed_must, failed_other, skipped, errors } = self.summary();
        json!({
            "device": self.device.to_string(),
            "features": format!("{:#x}", self.offer.features),
            "protocol_features": format!("{:#x}", self.offer.protocol_features),
            "queue_num": self.offer.queue_num,
            "cases": self.cases.iter().map(CaseReport::to_json).collect::<Vec<_>>(),
            "summary": {
                "passed": passed,
                "failed_must": failed_must,
                "failed_other": failed_other,
                "skipped": skipped,
                "errors": errors,
            },
        })
    }
}
