//! `tshark`, an independent reader of captures.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::find_program;

/// What reads captures; it is not installed everywhere.
pub fn command() -> Result<Command> {
    let mut command = Command::new(find_program("tshark")?);
    // No names, no preferences of the user's.
    command.args(["-n"]).env("HOME", "/nonexistent");
    Ok(command)
}

/// The values of these fields, packet by packet; an error if anything about the file displeases it.
pub fn fields(file: &Path, fields: &[&str]) -> Result<Vec<Vec<String>>> {
    let mut command = command()?;
    command.arg("-r").arg(file).args(["-T", "fields", "-E", "separator=|"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let run = command.output().context("tshark")?;
    let said = String::from_utf8_lossy(&run.stderr);
    // It warns whoever runs it as root.
    let complaints: Vec<_> = said.lines().filter(|line| !line.starts_with("Running as user")).collect();
    ensure!(run.status.success() && complaints.is_empty(), "tshark: {}: {complaints:?}", run.status);
    Ok(parse(&String::from_utf8_lossy(&run.stdout)))
}

/// Reads lines of fields.
pub fn parse(text: &str) -> Vec<Vec<String>> {
    text.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect()
}
