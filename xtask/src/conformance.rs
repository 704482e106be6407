//! Which normative statements of virtio and vhost-user are proven by which test, as a page for users.
//!
//! ```text
//!   conformance/statements.tsv    every statement      ┐
//!   conformance/exceptions.toml   those excused        ├──► docs/CONFORMANCE.md
//!   `/// [ID]` over a test        those proven         ┘    and the check that all of it holds
//! ```
//!
//! No test is run here, and nothing judges whether a test proves what it claims: that is the reviewer's part.

mod data;
mod page;
mod tags;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use self::data::{Statement, Weight};
use self::tags::Tests;

/// The page, from the repository's root.
const PAGE: &str = "docs/CONFORMANCE.md";
/// The areas that must be whole, with the roles they must be so for: each MUST and MUST NOT of theirs is proven or
/// excused.
const WHOLE: [(&str, &[&str]); 11] = [
    ("core", &["device", "driver"]),
    ("split", &["device", "driver"]),
    ("packed", &["device", "driver"]),
    ("pci", &["device", "driver"]),
    ("mmio", &["device", "driver"]),
    ("net", &["device", "driver"]),
    ("blk", &["device", "driver"]),
    ("console", &["device", "driver"]),
    ("entropy", &["device", "driver"]),
    ("balloon", &["device", "driver"]),
    ("vhost-user", &["back-end", "both"]),
];

/// What to do with the page.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Changes nothing; fails if the page is out of date, a tag or an exception wrong, or a proof missing
    #[arg(long)]
    check: bool,
}

/// Writes the page, or checks it.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent directory")?;
    let ledger = Ledger::read(root)?;
    if options.check {
        let faults = faults(&ledger, root);
        for fault in &faults {
            eprintln!("conformance: {fault}");
        }
        return Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    fs::write(root.join(PAGE), page::render(&ledger)).with_context(|| format!("cannot write {PAGE}"))?;
    Ok(ExitCode::SUCCESS)
}

/// All that is known: the statements, the tests that prove some of them, the excuses for others, by id.
struct Ledger {
    statements: Vec<Statement>,
    proofs: BTreeMap<String, Tests>,
    excuses: BTreeMap<String, String>,
}

/// How it stands with a statement.
enum State<'a> {
    Proven(&'a Tests),
    Excused(&'a str),
    Open,
}

impl Ledger {
    fn read(root: &Path) -> Result<Self> {
        Ok(Self {
            statements: data::statements(root)?,
            proofs: tags::proofs(root)?,
            excuses: data::exceptions(root)?,
        })
    }

    fn state(&self, statement: &Statement) -> State<'_> {
        if let Some(tests) = self.proofs.get(&statement.id) {
            State::Proven(tests)
        } else if let Some(excuse) = self.excuses.get(&statement.id) {
            State::Excused(excuse)
        } else {
            State::Open
        }
    }

    fn is_statement(&self, id: &str) -> bool {
        self.statements.iter().any(|statement| statement.id == id)
    }
}

/// What is wrong, a line each.
fn faults(ledger: &Ledger, root: &Path) -> Vec<String> {
    let mut faults = Vec::new();
    for (id, tests) in ledger.proofs.iter().filter(|(id, _)| !ledger.is_statement(id)) {
        faults.extend(tests.iter().map(|test| format!("{test}: there is no statement {id}")));
    }
    for id in ledger.excuses.keys() {
        if !ledger.is_statement(id) {
            faults.push(format!("{}: there is no statement {id}", data::EXCEPTIONS));
        } else if ledger.proofs.contains_key(id) {
            faults.push(format!("{}: {id} is excused, but proven as well", data::EXCEPTIONS));
        }
    }
    for statement in &ledger.statements {
        let is_whole = |(area, roles): &(&str, &[&str])| {
            statement.area == *area && roles.contains(&statement.role.as_str())
        };
        let is_owed = WHOLE.iter().any(is_whole) && statement.weight == Weight::Must;
        if is_owed && matches!(ledger.state(statement), State::Open) {
            faults.push(format!("{} ({}) is neither proven nor excused", statement.id, statement.level));
        }
    }
    // A page that cannot be read is out of date too.
    if fs::read_to_string(root.join(PAGE)).ok().as_deref() != Some(&page::render(ledger)) {
        faults.push(format!("{PAGE} is out of date: run `cargo xtask conformance`"));
    }
    faults
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const STATEMENTS: &str = "# A comment.\n\
        id\trole\tarea\tlevel\tsection\n\
        DEV-SPLIT-a-01\tdevice\tsplit\tMUST\tRings / A\n\
        DRV-SPLIT-a-01\tdriver\tsplit\tSHOULD NOT\tRings / A\n\
        DRV-SPLIT-a-02\tdriver\tsplit\tMAY\tRings / A\n\
        DRV-VSOCK-b-01\tdriver\tvsock\tMUST NOT\tSocket / B\n";
    const PROOF: [&str; 3] = ["/// [DEV-SPLIT-a-01] Shows it.", "#[test]", "fn a_is_so() {}"];

    /// A repository with these exceptions, and this source as a test.
    fn repository(exceptions: &str, source: &[&str]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for folder in ["conformance", "docs", "tests"] {
            fs::create_dir(root.path().join(folder)).unwrap();
        }
        fs::write(root.path().join(data::STATEMENTS), STATEMENTS).unwrap();
        fs::write(root.path().join(data::EXCEPTIONS), exceptions).unwrap();
        fs::write(root.path().join("tests/a.rs"), source.join("\n")).unwrap();
        root
    }

    /// What is wrong with it once its page was written.
    fn faults_of(root: &TempDir) -> Vec<String> {
        let ledger = Ledger::read(root.path()).unwrap();
        fs::write(root.path().join(PAGE), page::render(&ledger)).unwrap();
        faults(&ledger, root.path())
    }

    #[test]
    fn a_proof_or_an_excuse_is_enough() {
        assert!(faults_of(&repository("", &PROOF)).is_empty());
        assert!(faults_of(&repository("\"DEV-SPLIT-a-01\" = \"no rings\"\n", &[])).is_empty());
    }

    #[test]
    fn a_must_of_a_whole_area_is_owed() {
        assert_eq!(faults_of(&repository("", &[])), ["DEV-SPLIT-a-01 (MUST) is neither proven nor excused"]);
    }

    #[test]
    fn a_tag_names_a_statement() {
        let source = [&["/// [DEV-SPLIT-a-09]"], &PROOF[..]].concat();
        let faults = faults_of(&repository("", &source));
        assert_eq!(faults, ["tests/a.rs: a_is_so: there is no statement DEV-SPLIT-a-09"]);
    }

    #[test]
    fn an_exception_names_a_statement_without_proof() {
        let root =
            repository("\"DEV-SPLIT-a-09\" = \"no such\"\n\"DEV-SPLIT-a-01\" = \"nor this\"\n", &PROOF);
        let expected = [
            "conformance/exceptions.toml: DEV-SPLIT-a-01 is excused, but proven as well",
            "conformance/exceptions.toml: there is no statement DEV-SPLIT-a-09",
        ];
        assert_eq!(faults_of(&root), expected);
    }

    #[test]
    fn a_page_must_be_the_newest() {
        let root = repository("", &PROOF);
        assert!(faults_of(&root).is_empty());
        let stale = ["docs/CONFORMANCE.md is out of date: run `cargo xtask conformance`"];
        fs::write(root.path().join("tests/b.rs"), PROOF.join("\n")).unwrap();
        assert_eq!(faults(&Ledger::read(root.path()).unwrap(), root.path()), stale);
        assert!(faults_of(&root).is_empty());
        fs::remove_file(root.path().join(PAGE)).unwrap();
        assert_eq!(faults(&Ledger::read(root.path()).unwrap(), root.path()), stale);
    }

    #[test]
    fn whole_areas_have_statements() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let statements = data::statements(root).unwrap();
        for (area, roles) in WHOLE {
            for role in roles {
                let is_of = |s: &Statement| s.area == area && s.role == *role && s.weight == Weight::Must;
                assert!(statements.iter().any(is_of), "{area}, {role}");
            }
        }
    }
}
