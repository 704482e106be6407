//! The requirements on back-ends, and which of them cannot be seen from outside.

use std::fmt;

use crate::cases::chapters;

/// The repository's table of requirements, without their words.
const TABLE: &str = include_str!("../../../conformance/statements.tsv");

/// A requirement on back-ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement {
    /// Its id.
    pub id: &'static str,
    /// How much it asks, in the document's word.
    pub level: &'static str,
}

/// Requirements that no case tries, by how their ids begin.
const UNSEEN: &[(&str, &str)] = &[
    ("VU-BE-create-crypto-session", "crypto devices have no cases"),
    ("VU-BE-close-crypto-session", "crypto devices have no cases"),
    ("VU-FB-create-crypto-session", "crypto devices have no cases"),
    ("VU-FB-close-crypto-session", "crypto devices have no cases"),
    ("VU-BE-gpu-set-socket", "graphics devices have no cases"),
    ("VU-BE-set-vring-endian", "no vring can be of another endianness than the machine that runs the cases"),
    ("VU-BE-introduction", "a recommendation to programs"),
    ("VU-FB-support-for-platforms", "what the back-end does on systems other than Linux"),
    ("VU-BE-memory-region-description", "regions that cannot be mapped in advance are Xen's"),
    ("VU-BE-communication-01", "a permission to rely on the front-end"),
    ("VU-BE-communication-0", "what an exceptional circumstance is, is for the back-end to say"),
    ("VU-FB-migration-01", "a permission; the cases of the log go by what is offered"),
    ("VU-BE-migration-03", "whether the log is changed atomically shows only in a race that is lost"),
    ("VU-BE-migration-05", "a permission to the back-end"),
    ("VU-BE-migration-07", "memory that has not arrived needs a migration"),
    ("VU-BE-migrating-back-end-state-0", "what the state means is the device's; it needs a guest"),
    ("VU-BE-iommu-support-03", "when access is denied, rather than unknown, is for the front-end to say"),
    ("VU-FB-iommu-support-01", "a permission to the back-end"),
    ("VU-BE-back-end-communication-01", "a permission to the back-end"),
    ("VU-BE-back-end-communication-02", "no device that is known here sends file descriptors"),
    ("VU-BE-inflight-i-o-tracking-08", "a permission to the back-end"),
    ("VU-BE-inflight-i-o-tracking-30", "a permission to the back-end"),
    ("VU-BE-inflight-i-o-tracking", "a step inside the back-end; what all steps come to is tried"),
    ("VU-FB-in-band-notifications", "advice to those who choose features"),
    (
        "VU-BE-set-mem-table-02",
        "whether memory was touched shows to a userfaultfd's reader during a migration",
    ),
    ("VU-BE-get-vring-base-02", "a permission to the back-end"),
    ("VU-BE-postcopy-listen-01", "what is registered shows to a userfaultfd's reader during a migration"),
    ("VU-BE-postcopy-end-01", "what is registered shows to a userfaultfd's reader during a migration"),
    ("VU-BE-add-mem-reg-02", "needs memory that is added during a migration"),
    ("VU-FB-set-device-state-fd", "what the channel is, is for its maker to say"),
    ("VU-BE-set-device-state-fd-0", "a permission to the back-end"),
    ("VU-BE-backend-vring-host-notifier-msg", "needs a device with a doorbell that can be mapped"),
    ("VU-BE-backend-vring-err", "a permission to the back-end"),
    (
        "VU-BE-backend-program-conventions",
        "how the program is started and ended, not what it says on a socket",
    ),
    ("VU-BE-get-shmem-config-03", "a permission to the back-end"),
    ("VU-BE-backend-shmem", "no device that is known here has shared memory"),
];

/// A requirement, and how it is tried or why it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The requirement.
    pub statement: Statement,
    /// The names of the cases that try it.
    pub cases: Vec<&'static str>,
    /// Why there is none.
    pub unseen: Option<&'static str>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Statement { id, level } = self.statement;
        write!(f, "{id:58} {level:10} ")?;
        match self.unseen {
            Some(why) => write!(f, "not seen: {why}"),
            None => write!(f, "{}", self.cases.join(", ")),
        }
    }
}

/// The requirements on back-ends, and on both sides, in the order of the document.
pub fn statements() -> impl Iterator<Item = Statement> {
    TABLE.lines().filter_map(|line| {
        let mut columns = line.split('\t');
        let id = columns.next().filter(|id| id.starts_with("VU-BE-") || id.starts_with("VU-FB-"))?;
        Some(Statement { id, level: columns.nth(2)? })
    })
}

/// Each requirement with its cases.
pub fn rows() -> impl Iterator<Item = Row> {
    statements().map(|statement| {
        let cases = chapters().iter().flat_map(|chapter| chapter.cases);
        let cases = cases.filter(|case| case.ids.contains(&statement.id)).map(|case| case.name).collect();
        let cases: Vec<_> = cases;
        let unseen = if cases.is_empty() { why_unseen(statement.id) } else { None };
        Row { statement, cases, unseen }
    })
}

/// Why a requirement cannot be seen from outside; the first entry that its id begins with says it.
fn why_unseen(id: &str) -> Option<&'static str> {
    UNSEEN.iter().find(|(prefix, _)| id.starts_with(prefix)).map(|(_, why)| *why)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every requirement is tried, or it is said why not.
    #[test]
    fn each_requirement_is_accounted_for() {
        for Row { statement, cases, unseen } in rows() {
            assert_eq!(cases.is_empty(), unseen.is_some(), "{}: {cases:?} {unseen:?}", statement.id);
        }
    }

    #[test]
    fn cases_name_requirements_that_exist_and_have_names_of_their_own() {
        let known: BTreeSet<_> = TABLE.lines().filter_map(|line| line.split('\t').next()).collect();
        let mut names = BTreeSet::new();
        for case in chapters().iter().flat_map(|chapter| chapter.cases) {
            assert!(names.insert(case.name), "{} stands there twice", case.name);
            for id in case.ids {
                assert!(known.contains(id), "{}: {id} does not exist", case.name);
            }
            assert_eq!(case.ids.is_empty(), case.hostile, "{}", case.name);
        }
    }

    /// A reason that nothing needs is a mistake.
    #[test]
    fn each_reason_has_a_requirement() {
        for (_, why) in UNSEEN {
            assert!(rows().any(|row| row.unseen == Some(why)), "{why}");
        }
    }
}
