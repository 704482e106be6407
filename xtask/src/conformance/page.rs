//! The page as Markdown. The same ledger gives the same bytes.

use std::collections::BTreeMap;

use super::data::{Statement, Weight};
use super::tags::Tests;
use super::{Ledger, State, WHOLE};

const INTRODUCTION: &str = "\
# Conformance

Which normative statements of virtio 1.4 (Committee Specification 01) and of QEMU 10.2's vhost-user.rst are
proven by which test of this repository. `cargo xtask conformance` makes this page from the tests; it is not
written by hand.

| a statement is | when |
|---|---|
| proven | the tests named beside it show that Ringway does as it asks |
| excused | it cannot apply to Ringway; the reason stands beside it |
| open | no test shows it: the feature is not there, or its proof is not |

A MAY asks for nothing; where no test shows one, a dash stands in its place.

The text of a statement is in the specification. Its id says whom it binds (`DEV` a device, `DRV` a driver,
`VU-BE` a back-end, `VU-FE` a front-end, `VU-FB` both) and where it stands;
[conformance/statements.tsv](../conformance/statements.tsv) has the whole heading, and how ids are made.
";

const SUMMARY: &str = "
## Summary

MUST and SHOULD include MUST NOT and SHOULD NOT.

| area | role | MUST proven | excused | all | SHOULD proven | excused | all |
|---|---|--:|--:|--:|--:|--:|--:|
";

const AREA: &str = "
| statement | level | role | proven by |
|---|---|---|---|
";

/// The page.
pub(super) fn render(ledger: &Ledger) -> String {
    let areas = areas(ledger);
    let whole = WHOLE.map(|(area, roles)| format!("{area} ({})", roles.join(", "))).join(", ");
    let mut page = vec![
        INTRODUCTION.to_owned(),
        format!("\n`make lint` fails while a MUST or MUST NOT of these is open: {whole}.\n"),
        SUMMARY.to_owned(),
    ];
    let mut all = Count::default();
    for (area, statements) in &areas {
        let mut roles = BTreeMap::<_, Count>::new();
        for statement in statements {
            roles.entry(&statement.role).or_default().add(ledger, statement);
            all.add(ledger, statement);
        }
        let name =
            if is_shown(ledger, statements) { format!("[{area}](#{area})") } else { (*area).to_owned() };
        page.extend(roles.iter().map(|(role, count)| format!("| {name} | {role} | {} |\n", count.cells())));
    }
    page.push(format!("| all | | {} |\n", all.cells()));
    for (area, statements) in areas.iter().filter(|(_, statements)| is_shown(ledger, statements)) {
        page.push(format!("\n## {area}\n{AREA}"));
        page.extend(statements.iter().map(|statement| {
            let Statement { id, level, role, .. } = statement;
            format!("| {id} | {level} | {role} | {} |\n", proof(ledger, statement))
        }));
    }
    page.concat()
}

/// The statements of each area, areas in the order in which they come, statements by id.
fn areas(ledger: &Ledger) -> Vec<(&str, Vec<&Statement>)> {
    let mut areas: Vec<(&str, Vec<&Statement>)> = Vec::new();
    for statement in &ledger.statements {
        match areas.iter_mut().find(|(area, _)| *area == statement.area) {
            Some((_, statements)) => statements.push(statement),
            None => areas.push((&statement.area, vec![statement])),
        }
    }
    for (_, statements) in &mut areas {
        statements.sort_by_key(|statement| &statement.id);
    }
    areas
}

/// Whether an area has a table of its own: not if all of it is open.
fn is_shown(ledger: &Ledger, statements: &[&Statement]) -> bool {
    statements.iter().any(|statement| !matches!(ledger.state(statement), State::Open))
}

/// What stands beside a statement.
fn proof(ledger: &Ledger, statement: &Statement) -> String {
    match ledger.state(statement) {
        State::Proven(tests) => links(tests),
        State::Excused(excuse) => format!("excused: {}", excuse.replace('|', "\\|")),
        State::Open if statement.weight == Weight::May => "–".to_owned(),
        State::Open => "open".to_owned(),
    }
}

/// The tests, those of a file together.
fn links(tests: &Tests) -> String {
    let mut files = BTreeMap::<_, Vec<_>>::new();
    for test in tests {
        files.entry(&test.file).or_default().push(format!("`{}`", test.name));
    }
    let links: Vec<_> =
        files.iter().map(|(file, names)| format!("[{file}](../{file}): {}", names.join(", "))).collect();
    links.join("<br>")
}

/// Statements of some area and role.
#[derive(Default)]
struct Count {
    must: Tally,
    should: Tally,
}

#[derive(Default)]
struct Tally {
    proven: u32,
    excused: u32,
    all: u32,
}

impl Count {
    fn add(&mut self, ledger: &Ledger, statement: &Statement) {
        let tally = match statement.weight {
            Weight::Must => &mut self.must,
            Weight::Should => &mut self.should,
            Weight::May => return,
        };
        tally.all += 1;
        match ledger.state(statement) {
            State::Proven(_) => tally.proven += 1,
            State::Excused(_) => tally.excused += 1,
            State::Open => {}
        }
    }

    fn cells(&self) -> String {
        [&self.must, &self.should].map(|t| format!("{} | {} | {}", t.proven, t.excused, t.all)).join(" | ")
    }
}

#[cfg(test)]
mod tests {
    use super::super::tags::Test;
    use super::*;

    fn statement(id: &str, role: &str, area: &str, (level, weight): (&str, Weight)) -> Statement {
        let [id, role, area, level] = [id, role, area, level].map(str::to_owned);
        Statement { id, role, area, level, weight }
    }

    fn tests(tests: &[(&str, &str)]) -> Tests {
        tests.iter().map(|&(file, name)| Test { file: file.to_owned(), name: name.to_owned() }).collect()
    }

    fn ledger() -> Ledger {
        const MUST: (&str, Weight) = ("MUST NOT", Weight::Must);
        const SHOULD: (&str, Weight) = ("SHOULD", Weight::Should);
        const MAY: (&str, Weight) = ("MAY", Weight::May);
        let proven = tests(&[("b.rs", "y"), ("a/t.rs", "z"), ("b.rs", "x")]);
        Ledger {
            statements: vec![
                statement("DRV-B-02", "driver", "b", SHOULD),
                statement("DRV-B-01", "driver", "b", MUST),
                statement("DEV-B-02", "device", "b", MAY),
                statement("DEV-B-01", "device", "b", MUST),
                statement("DEV-A-01", "device", "a", MUST),
            ],
            proofs: BTreeMap::from([("DEV-B-01".to_owned(), proven)]),
            excuses: BTreeMap::from([("DRV-B-02".to_owned(), "x | y".to_owned())]),
        }
    }

    #[test]
    fn the_summary_counts_by_area_and_role() {
        let page = render(&ledger());
        let (_, after) = page.split_once(SUMMARY).unwrap();
        let (rows, _) = after.split_once("\n\n").unwrap();
        let expected = [
            "| [b](#b) | device | 1 | 0 | 1 | 0 | 0 | 0 |",
            "| [b](#b) | driver | 0 | 0 | 1 | 0 | 1 | 1 |",
            "| a | device | 0 | 0 | 1 | 0 | 0 | 0 |",
            "| all | | 1 | 0 | 3 | 0 | 1 | 1 |",
        ];
        assert_eq!(rows.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn an_area_is_shown_by_id_if_something_is_known_of_it() {
        let page = render(&ledger());
        let (_, after) = page.split_once(&format!("\n## b\n{AREA}")).unwrap();
        let expected = [
            "| DEV-B-01 | MUST NOT | device | [a/t.rs](../a/t.rs): `z`<br>[b.rs](../b.rs): `x`, `y` |",
            "| DEV-B-02 | MAY | device | – |",
            "| DRV-B-01 | MUST NOT | driver | open |",
            "| DRV-B-02 | SHOULD | driver | excused: x \\| y |",
        ];
        assert_eq!(after.lines().collect::<Vec<_>>(), expected);
    }
}
