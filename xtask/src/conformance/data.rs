//! The two files of `conformance/`: the statements, and those that are excused.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// The statements, from the repository's root.
pub(super) const STATEMENTS: &str = "conformance/statements.tsv";
/// The exceptions, from the repository's root.
pub(super) const EXCEPTIONS: &str = "conformance/exceptions.toml";

/// What the columns of the statements are called. The last is for readers only.
const COLUMNS: [&str; 5] = ["id", "role", "area", "level", "section"];

/// A normative statement, without its words.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) id: String,
    pub(super) role: String,
    pub(super) area: String,
    /// As the specification writes it.
    pub(super) level: String,
    pub(super) weight: Weight,
}

/// How much a statement asks; a prohibition weighs as much as a demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    Must,
    Should,
    May,
}

/// The statements in the order of their file.
pub(super) fn statements(root: &Path) -> Result<Vec<Statement>> {
    let text = fs::read_to_string(root.join(STATEMENTS)).context(STATEMENTS)?;
    parse_statements(&text).context(STATEMENTS)
}

/// The excuses by id.
pub(super) fn exceptions(root: &Path) -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(root.join(EXCEPTIONS)).context(EXCEPTIONS)?;
    parse_exceptions(&text).context(EXCEPTIONS)
}

fn parse_statements(text: &str) -> Result<Vec<Statement>> {
    let mut rows = text.lines().filter(|line| !line.starts_with('#'));
    ensure!(rows.next() == Some(&COLUMNS.join("\t")), "the columns are not {}", COLUMNS.join(", "));
    let mut ids = BTreeSet::new();
    let mut statements = Vec::new();
    for row in rows {
        let columns: Vec<_> = row.split('\t').collect();
        let &[id, role, area, level, _section] = columns.as_slice() else {
            bail!("not {} columns: {row}", COLUMNS.len());
        };
        let weight = match level {
            "MUST" | "MUST NOT" => Weight::Must,
            "SHOULD" | "SHOULD NOT" => Weight::Should,
            "MAY" => Weight::May,
            _ => bail!("{id}: no level: {level}"),
        };
        ensure!(ids.insert(id), "{id} stands there twice");
        let [id, role, area, level] = [id, role, area, level].map(str::to_owned);
        statements.push(Statement { id, role, area, level, weight });
    }
    Ok(statements)
}

/// Reads what is needed of TOML: comments, and `"ID" = "excuse"`, one on a line.
fn parse_exceptions(text: &str) -> Result<BTreeMap<String, String>> {
    let mut excuses = BTreeMap::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (id, excuse) = exception(line).with_context(|| format!("not \"ID\" = \"excuse\": {line}"))?;
        ensure!(excuses.insert(id.to_owned(), excuse.to_owned()).is_none(), "{id} stands there twice");
    }
    Ok(excuses)
}

fn exception(line: &str) -> Option<(&str, &str)> {
    let (id, excuse) = line.split_once('=')?;
    Some((string(id)?, string(excuse)?)).filter(|(_, excuse)| !excuse.trim().is_empty())
}

/// A TOML string of one line without escapes.
fn string(text: &str) -> Option<&str> {
    text.trim().strip_prefix('"')?.strip_suffix('"').filter(|inner| !inner.contains(['"', '\\']))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "# Comments.\n# More.\nid\trole\tarea\tlevel\tsection\n";

    #[test]
    fn statements_keep_their_order_and_weight() {
        let rows = "DRV-B-01\tdriver\tb\tSHOULD NOT\tB / b\nDEV-A-01\tdevice\ta\tMUST NOT\tA\n";
        let statements = parse_statements(&format!("{HEAD}{rows}")).unwrap();
        let [b, a] = statements.as_slice() else { panic!("{statements:?}") };
        assert_eq!((b.id.as_str(), b.level.as_str(), b.weight), ("DRV-B-01", "SHOULD NOT", Weight::Should));
        assert_eq!((a.role.as_str(), a.area.as_str(), a.weight), ("device", "a", Weight::Must));
    }

    #[test]
    fn a_faulty_table_is_refused() {
        for rows in [
            "DEV-A-01\tdevice\ta\tMUST\n",
            "DEV-A-01\tdevice\ta\tmust\tA\n",
            "DEV-A-01\tdevice\ta\tMUST\tA\nDEV-A-01\tdevice\ta\tMAY\tA\n",
        ] {
            assert!(parse_statements(&format!("{HEAD}{rows}")).is_err(), "{rows}");
        }
        assert!(parse_statements("DEV-A-01\tdevice\ta\tMUST\tA\n").is_err());
    }

    #[test]
    fn exceptions_are_one_on_a_line() {
        let excuses = parse_exceptions("# Why.\n\n\"DEV-A-01\" = \"x = y | z\"\n  \"VU-B\"=\"b\"\n").unwrap();
        assert_eq!(excuses["DEV-A-01"], "x = y | z");
        assert_eq!(excuses["VU-B"], "b");
        assert_eq!(excuses.len(), 2);
    }

    #[test]
    fn a_faulty_exception_is_refused() {
        for text in [
            "\"DEV-A-01\"",
            "\"DEV-A-01\" = \" \"",
            "\"DEV-A-01\" = bare",
            "\"DEV-A-01\" = \"a\\nb\"",
            "[section]",
            "\"DEV-A-01\" = \"a\"\n\"DEV-A-01\" = \"b\"",
        ] {
            assert!(parse_exceptions(text).is_err(), "{text}");
        }
    }
}
