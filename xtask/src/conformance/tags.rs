//! Which tests claim to prove which statements: the tags `[ID]` in their doc comments.
//!
//! Sources are read line by line and not parsed. A tag counts when nothing but doc comments, attributes of a
//! line each and empty lines stand between it and a `fn`, and the attributes make that function a test that is
//! not ignored; so in `proptest!` as well. A test that only a macro's expansion has is not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::mem;
use std::path::Path;

use anyhow::{Context, Result};

/// Whom a statement binds is how its id begins.
const ROLES: [&str; 3] = ["DEV-", "DRV-", "VU-"];
/// Directories without sources of ours.
const SKIPPED: [&str; 2] = [".git", "target"];

/// Tests, by file and name.
pub(super) type Tests = BTreeSet<Test>;

/// A test, by where it stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Test {
    /// From the repository's root.
    pub(super) file: String,
    /// The function's, without its modules.
    pub(super) name: String,
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file, self.name)
    }
}

/// The tests of all sources below `root`, by the ids that they claim.
pub(super) fn proofs(root: &Path) -> Result<BTreeMap<String, Tests>> {
    let mut proofs = BTreeMap::<String, Tests>::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))? {
            let entry = entry?;
            let path = entry.path();
            let kind = entry.file_type()?;
            if kind.is_dir() && !SKIPPED.iter().any(|skipped| entry.file_name() == *skipped) {
                folders.push(path);
            } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "rs") {
                let source = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
                let file = path.strip_prefix(root)?.to_str().context("a path that is not UTF-8")?;
                for (name, ids) in claims(&source) {
                    let test = Test { file: file.to_owned(), name: name.to_owned() };
                    for id in ids {
                        proofs.entry(id.to_owned()).or_default().insert(test.clone());
                    }
                }
            }
        }
    }
    Ok(proofs)
}

/// The tests of a source that claim something, each with the ids.
fn claims(source: &str) -> Vec<(&str, Vec<&str>)> {
    let mut claims = Vec::new();
    let mut ids = Vec::new();
    let mut attributes = Vec::new();
    for line in source.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.starts_with("///") && !line.starts_with("////") {
            ids.extend(tags(line));
        } else if line.starts_with("#[") {
            attributes.push(line);
        } else {
            let ids = mem::take(&mut ids);
            if is_run(&mem::take(&mut attributes))
                && !ids.is_empty()
                && let Some(name) = function(line)
            {
                claims.push((name, ids));
            }
        }
    }
    claims
}

/// The ids in brackets on a line.
fn tags(line: &str) -> impl Iterator<Item = &str> {
    line.split('[').skip(1).filter_map(|rest| rest.split_once(']')).map(|(inner, _)| inner).filter(|inner| {
        let tail = ROLES.iter().find_map(|role| inner.strip_prefix(role));
        tail.is_some_and(|tail| {
            !tail.is_empty() && tail.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        })
    })
}

/// Whether a function with these attributes is a test that is run. One that is ignored on a condition is not.
fn is_run(attributes: &[&str]) -> bool {
    let is_test = |attribute: &&str| {
        !attribute.starts_with("#[cfg(")
            && words(attribute).any(|word| matches!(word, "test" | "rstest" | "test_case"))
    };
    attributes.iter().any(is_test) && !attributes.iter().any(|attribute| attribute.contains("ignore"))
}

/// The name of the function that begins on this line.
fn function(line: &str) -> Option<&str> {
    let mut words = words(line).skip_while(|word| matches!(*word, "pub" | "async"));
    words.next().filter(|word| *word == "fn").and(words.next())
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

// Sources stand here in a string for each line: a line of one string would count as a tag of ours.
#[cfg(test)]
mod tests {
    use super::*;

    /// The claims of a source, with the ids of a test in one string.
    fn read(lines: &[&str]) -> Vec<(String, String)> {
        let source = lines.join("\n");
        claims(&source).into_iter().map(|(name, ids)| (name.to_owned(), ids.join(" "))).collect()
    }

    fn expect(lines: &[&str], expected: &[(&str, &str)]) {
        let expected: Vec<_> =
            expected.iter().map(|&(name, ids)| (name.to_owned(), ids.to_owned())).collect();
        assert_eq!(read(lines), expected, "{lines:#?}");
    }

    #[test]
    fn a_tag_over_a_test_counts() {
        expect(&["/// [DEV-A-b-01] What it shows.", "#[test]", "fn a() {"], &[("a", "DEV-A-b-01")]);
        expect(&["/// Shows [VU-BE-x-00].", "#[tokio::test]", "pub async fn a() {"], &[("a", "VU-BE-x-00")]);
        expect(&["#[rstest]", "/// [DRV-A-1]", "#[case(1)]", "fn a(n: u8) {"], &[("a", "DRV-A-1")]);
    }

    #[test]
    fn several_ids_and_several_lines() {
        let lines = [
            "/// [DEV-A-01] [DRV-A-02][VU-FE-c-03] What",
            "/// it shows,",
            "",
            "    /// and [DEV-A-04].",
            "    #[test]",
            "    fn a() {",
        ];
        expect(&lines, &[("a", "DEV-A-01 DRV-A-02 VU-FE-c-03 DEV-A-04")]);
    }

    #[test]
    fn attributes_stand_between() {
        let lines = [
            "/// [DEV-A-01]",
            "#[cfg(target_os = \"linux\")]",
            "#[test]",
            "#[should_panic(expected = \"no\")]",
            "fn a() {",
        ];
        expect(&lines, &[("a", "DEV-A-01")]);
    }

    #[test]
    fn a_tag_belongs_to_the_next_item_only() {
        let lines = [
            "/// [DEV-A-01]",
            "#[test]",
            "fn a() {}",
            "#[test]",
            "fn b() {}",
            "/// [DEV-A-02]",
            "#[test]",
            "fn c() {}",
        ];
        expect(&lines, &[("a", "DEV-A-01"), ("c", "DEV-A-02")]);
        expect(&["/// [DEV-A-01]", "struct S;", "#[test]", "fn a() {}"], &[]);
        expect(&["#[test]", "fn a() {", "/// [DEV-A-01]", "fn b() {}"], &[]);
    }

    #[test]
    fn other_comments_do_not_count() {
        for comment in ["// [DEV-A-01]", "//! [DEV-A-01]", "//// [DEV-A-01]", "/* [DEV-A-01] */"] {
            expect(&[comment, "#[test]", "fn a() {"], &[]);
        }
        expect(&["/// [DEV-A-01]", "// Why.", "#[test]", "fn a() {"], &[]);
    }

    #[test]
    fn a_function_that_is_no_test_does_not_count() {
        expect(&["/// [DEV-A-01]", "fn a() {"], &[]);
        expect(&["/// [DEV-A-01]", "#[inline]", "fn a() {"], &[]);
        expect(&["/// [DEV-A-01]", "#[cfg(test)]", "fn a() {"], &[]);
        expect(&["/// [DEV-A-01]", "#[test]", "mod a {"], &[]);
    }

    #[test]
    fn an_ignored_test_does_not_count() {
        expect(&["/// [DEV-A-01]", "#[test]", "#[ignore]", "fn a() {"], &[]);
        expect(&["/// [DEV-A-01]", "#[ignore = \"slow\"]", "#[test]", "fn a() {"], &[]);
        expect(&["/// [DEV-A-01]", "#[test]", "#[cfg_attr(miri, ignore)]", "fn a() {"], &[]);
    }

    #[test]
    fn tests_in_a_proptest_block_count() {
        let lines = [
            "proptest! {",
            "    #![proptest_config(config())]",
            "",
            "    /// [DEV-A-01] Whatever comes.",
            "    #[test]",
            "    fn a(data in bytes(600)) {",
            "        assert!(read(&data));",
            "    }",
            "",
            "    /// [DEV-A-02] Lines of arguments.",
            "    #[test]",
            "    fn b(",
            "        data in bytes(600),",
            "    ) {",
            "    }",
            "}",
        ];
        expect(&lines, &[("a", "DEV-A-01"), ("b", "DEV-A-02")]);
    }

    #[test]
    fn what_only_looks_like_an_id_does_not_count() {
        for text in
            ["DEV-A-01", "[DEV-]", "[DEVICE-A-01]", "[dev-a-01]", "[DEV-A 01]", "[DEV-A_01]", "[DEV-A-01"]
        {
            expect(&[&format!("/// {text} and so on"), "#[test]", "fn a() {"], &[]);
        }
        expect(&["/// [a [DEV-A-01] b]", "#[test]", "fn a() {"], &[("a", "DEV-A-01")]);
    }

    #[test]
    fn all_sources_are_read_but_not_what_was_built() {
        let root = tempfile::tempdir().unwrap();
        let source = ["/// [DEV-A-01]", "#[test]", "fn a() {}"].join("\n");
        for file in ["b/c/z.rs", "b/a.rs", "a.txt", "target/a.rs", "b/target/a.rs", ".git/a.rs"] {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, &source).unwrap();
        }
        let proofs = proofs(root.path()).unwrap();
        let tests: Vec<_> = proofs["DEV-A-01"].iter().map(ToString::to_string).collect();
        assert_eq!(tests, ["b/a.rs: a", "b/c/z.rs: a"]);
        assert_eq!(proofs.len(), 1);
    }
}
