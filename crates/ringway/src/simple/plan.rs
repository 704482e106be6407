//! Which devices there are, as the command line says.

use std::collections::{HashMap, HashSet};

use anyhow::{Result, bail, ensure};

use crate::args::{self, Attach, GuestArg};
use crate::place::Place;

/// Devices to be.
pub(crate) struct Plan<O> {
    pub(super) units: Vec<UnitPlan>,
    /// What they are, all alike.
    pub(super) settings: O,
}

/// Where a device is to be.
pub(crate) struct UnitPlan {
    pub(super) name: String,
    pub(super) place: Place,
}

impl<O> Plan<O> {
    /// One device at a socket, named after its kind.
    pub(crate) fn one(kind: &str, attach: &Attach, settings: O) -> Result<Self> {
        let place = match (&attach.socket_path, attach.fd) {
            (Some(path), None) => args::place(path, attach.client),
            (None, Some(fd)) if !attach.client => Place::Inherited(fd),
            (None, Some(_)) => {
                bail!("--client connects to --socket-path=PATH, and --fd=N is a socket already")
            }
            _ => bail!("say where front-ends attach: --socket-path=PATH, or --fd=N for an inherited socket"),
        };
        Ok(Self { units: vec![UnitPlan { name: kind.to_owned(), place }], settings })
    }

    /// One for each of several guests, or the one at a socket.
    pub(crate) fn several(kind: &str, attach: &Attach, guests: &[GuestArg], settings: O) -> Result<Self> {
        if guests.is_empty() {
            return Self::one(kind, attach, settings);
        }
        let (mut names, mut sockets, mut units) = (HashSet::new(), HashMap::new(), Vec::new());
        for GuestArg { name, socket: path } in guests {
            ensure!(names.insert(name), "guest {name}: the name is given twice");
            if let Some(other) = sockets.insert(path, name) {
                bail!("guest {name}: guest {other} has the socket {} already", path.display());
            }
            units.push(UnitPlan { name: name.clone(), place: args::place(path, attach.client) });
        }
        Ok(Self { units, settings })
    }
}

impl UnitPlan {
    /// How messages call it.
    pub(super) fn label(&self, kind: &str) -> String {
        if self.name == kind { kind.to_owned() } else { format!("{kind} {}", self.name) }
    }
}
