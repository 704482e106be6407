//! What `ringway check` says of several projects' back-ends, as a page for users.
//!
//! Every back-end is started here, by the command that stands on the page. A failure without a note, and a note
//! without a failure, end the chore: somebody has to look.

mod notes;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};
use ringway_check::{
    Case, CaseReport, Chapter, Options as CheckOptions, Target, Verdict, chapters, run as check,
};
use ringway_testkit::backend::{Backend, Project};

use self::notes::NOTES;

/// The page, from the repository's root.
const PAGE: &str = "docs/PEERS.md";

/// What to do with the page.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The ringway program, as `make build` makes it
    #[arg(long, value_name = "PATH", default_value = "target/release/ringway")]
    program: PathBuf,
}

/// What each case came to, by its name.
type Results = BTreeMap<&'static str, CaseReport>;

/// Examines all back-ends, and writes the page.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut columns = Vec::new();
    for project in Project::ALL {
        eprintln!("{project:?} …");
        columns.push((project, examine(project, &options.program)?));
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent directory")?;
    fs::write(root.join(PAGE), render(&columns)?).with_context(|| format!("cannot write {PAGE}"))?;
    let unexplained = unexplained(&columns);
    ensure!(unexplained.is_empty(), "xtask/src/peers/notes.rs:\n{}", unexplained.join("\n"));
    Ok(())
}

/// All cases on a back-end; each hostile one may be its last, and the next has another.
fn examine(project: Project, program: &Path) -> Result<Results> {
    let mut results = Results::new();
    let mut backend = Backend::start(project, program)?;
    let mut try_these = |only: Option<&Case>, backend: &mut Backend| -> Result<()> {
        let options = CheckOptions {
            only: only.map(|case| case.name.to_owned()),
            hostile: only.is_some(),
            ..CheckOptions::default()
        };
        let report = check(Target::Connect(backend.socket().to_owned()), &options, |_| {});
        let report = report.map_err(|verdict| anyhow!("{project:?}: {verdict:?}"))?;
        let wanted = |report: &CaseReport| only.is_none_or(|case| case.name == report.case.name);
        results.extend(report.cases.into_iter().filter(wanted).map(|case| (case.case.name, case)));
        Ok(())
    };
    try_these(None, &mut backend)?;
    for case in cases().filter(|case| case.hostile) {
        if try_these(Some(case), &mut backend).is_err() || !backend.is_running() {
            backend = Backend::start(project, program)?;
        }
    }
    Ok(results)
}

fn cases() -> impl Iterator<Item = &'static Case> {
    chapters().iter().flat_map(|Chapter { cases, .. }| *cases)
}

/// Failures that no note explains, and notes that explain no failure.
fn unexplained(columns: &[(Project, Results)]) -> Vec<String> {
    let mut faults = Vec::new();
    for (project, results) in columns {
        for case in cases() {
            let failed =
                results.get(case.name).is_some_and(|r| matches!(r.result, Err(Verdict::Fail { .. })));
            match (failed, note(*project, case.name)) {
                (true, None) => faults.push(format!("{project:?} fails {}, and no note says why", case.name)),
                (false, Some(_)) => faults.push(format!("{project:?} does not fail {}", case.name)),
                _ => {}
            }
        }
    }
    faults
}

fn note(project: Project, case: &str) -> Option<&'static str> {
    NOTES.iter().find(|(of, name, _)| *of == project && *name == case).map(|(_, _, why)| *why)
}

/// The page.
fn render(columns: &[(Project, Results)]) -> Result<String> {
    let mut page = String::from(HEAD);
    for (project, _) in columns {
        let command = project.command(Path::new("ringway"), "SOCKET", "IMAGE").join(" ");
        writeln!(page, "| {} | {} | `{command}` |", name(*project), version(*project)?)?;
    }
    page.push_str(TABLE);
    for Chapter { name, cases } in chapters() {
        for case in *cases {
            let cells: Vec<_> = columns.iter().map(|(_, results)| cell(results, case)).collect();
            let id = case.ids.first().unwrap_or(&"");
            writeln!(page, "| {name} | {id} | {} | {} | {} |", case.level, case.name, cells.join(" | "))?;
        }
    }
    writeln!(
        page,
        "| | | | **passed / failed / skipped** | {} |",
        columns.iter().map(totals).collect::<Vec<_>>().join(" | ")
    )?;
    page.push_str(FAILURES);
    for (project, results) in columns {
        writeln!(page, "\n### {}\n", name(*project))?;
        for case in cases() {
            let note = note(*project, case.name).unwrap_or("Not looked into.");
            let Some(Err(Verdict::Fail { expected, seen })) = results.get(case.name).map(|r| &r.result)
            else {
                continue;
            };
            writeln!(page, "- `{}`: {}. Expected: {expected}. Seen: {seen}. {note}", case.name, case.title)?;
        }
    }
    Ok(page)
}

fn cell(results: &Results, case: &Case) -> &'static str {
    results.get(case.name).map_or("–", |report| match report.word() {
        "PASS" => "pass",
        "FAIL" => "**FAIL**",
        "skip" => "–",
        _ => "?",
    })
}

fn totals((_, results): &(Project, Results)) -> String {
    let count = |word| results.values().filter(|report| report.word() == word).count();
    format!("{} / {} / {}", count("PASS"), count("FAIL"), count("skip"))
}

fn name(project: Project) -> &'static str {
    match project {
        Project::Ringway => "Ringway",
        Project::Dpdk => "DPDK `net_vhost`",
        Project::Qemu => "qemu-storage-daemon",
    }
}

/// The version that the program, or its package, says it has.
fn version(project: Project) -> Result<String> {
    let output = match project {
        Project::Ringway => return Ok("of this page".into()),
        Project::Dpdk => Command::new("dpkg-query").args(["-W", "-f=${Version}", "dpdk-dev"]).output(),
        Project::Qemu => Command::new("dpkg-query").args(["-W", "-f=${Version}", "qemu-utils"]).output(),
    };
    Ok(String::from_utf8(output.context("ask for a version")?.stdout)?)
}

const HEAD: &str = "# Back-ends examined

What [`ringway check --hostile`](check.md) says of three back-ends. `cargo xtask peers` makes this page; it starts each
back-end by the command that stands here. A hostile case that ends a back-end costs it that case only: the next has
a new one. `make test` holds that the results of the cases that are not hostile stay as they are.

| back-end | version | command |
|---|---|---|
";

const TABLE: &str = "
A dash: the case does not apply, since the back-end does not offer what it is about, or is another device.

| about | requirement | level | case | Ringway | DPDK | QEMU |
|---|---|---|---|---|---|---|
";

const FAILURES: &str = "
## What each failure is
";
