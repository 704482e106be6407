//! Tries cases, one after the other, and looks after each whether the back-end is still there.

use std::time::{Duration, Instant};

use crate::case::{Case, Verdict, skip};
use crate::cases::{Chapter, chapters};
use crate::context::{Context, Target};
use crate::device::Device;
use crate::report::{CaseReport, Report};

/// What to try, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// What kind of device it is; `None` to guess.
    pub device: Option<Device>,
    /// Only cases one of whose names or ids contains this.
    pub only: Option<String>,
    /// Hostile cases too.
    pub hostile: bool,
    /// How long the back-end may take for anything.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { device: None, only: None, hostile: false, patience: Duration::from_secs(2) }
    }
}

impl Options {
    /// Whether the case is to be tried.
    fn wants(&self, case: &Case) -> bool {
        let is_named = |pattern: &String| {
            case.name.contains(pattern) || case.ids.iter().any(|id| id.contains(pattern.as_str()))
        };
        (self.hostile || !case.hostile) && self.only.as_ref().is_none_or(is_named)
    }
}

/// Examines a back-end; `tell` hears of each case as it ends.
///
/// # Errors
/// What is wrong if the back-end cannot be spoken to at all.
pub fn run(target: Target, options: &Options, mut tell: impl FnMut(&CaseReport)) -> Result<Report, Verdict> {
    let mut context = Context::new(target, options.patience);
    context.probe()?;
    context.device = options.device.unwrap_or_else(|| Device::guess(context.offer.features));
    let mut report = Report { device: context.device, offer: context.offer, cases: Vec::new() };
    let mut is_gone = false;
    for Chapter { name, cases } in chapters() {
        for case in cases.iter().filter(|case| options.wants(case)) {
            let result = if is_gone {
                CaseReport::new(name, case, Err(Verdict::Error("the back-end is gone".into())))
            } else {
                try_case(&context, name, case, &mut is_gone)
            };
            tell(&result);
            report.cases.push(result);
        }
    }
    Ok(report)
}

/// Tries a case. If it fails, or is hostile, the back-end must be there for the next.
fn try_case(context: &Context, chapter: &'static str, case: &'static Case, is_gone: &mut bool) -> CaseReport {
    if let Err(verdict) = is_for(context, case) {
        return CaseReport::new(chapter, case, Err(verdict));
    }
    context.begin();
    let start = Instant::now();
    let result = (case.run)(context);
    let (time, sent) = (start.elapsed(), context.sent());
    let mut report = CaseReport::new(chapter, case, result);
    if let (true, Err(Verdict::Fail { seen, .. })) = (case.hostile, &report.result) {
        // What a back-end makes of it is its own affair.
        report.result = Ok(seen.clone());
    }
    if case.hostile || matches!(report.result, Err(Verdict::Fail { .. })) {
        // A back-end that fails at what it should do may not serve requests at all; it must talk.
        let alive = if case.hostile { context.check_alive() } else { context.check_talks() };
        if let Err(verdict) = alive {
            *is_gone = context.check_talks().is_err();
            report.result = Err(report.after(verdict));
        }
    }
    CaseReport { time, sent, ..report }
}

/// Whether the back-end has what the case needs.
fn is_for(context: &Context, case: &Case) -> Result<(), Verdict> {
    if !case.devices.contains(&context.device) {
        return Err(skip(format!("not for a {} device", context.device)));
    }
    let missing = case.features & !context.offer.features;
    if missing != 0 {
        return Err(skip(format!("feature {} is not offered", bits(missing))));
    }
    let missing = case.protocol & !context.offer.protocol_features;
    if missing != 0 {
        return Err(skip(format!("protocol feature {} is not offered", bits(missing))));
    }
    Ok(())
}

/// The numbers of the bits that are set.
fn bits(mask: u64) -> String {
    let set = (0..64).filter(|bit| mask & 1 << bit != 0).map(|bit: u32| bit.to_string());
    set.collect::<Vec<_>>().join(", ")
}
