//! One port: what it is, and what its driver knows of it.
//!
//! ```text
//!                    Add                        PORT_READY
//!   no view ────────────────────► view, not ready ───────► ready: Console, Name, Resize, Open, each if it is not told
//!      ▲                                │                    │
//!      └──────────── Remove ────────────┴────────────────────┘  gone, or another port in its place
//! ```
//!
//! Control messages wait for buffers of the driver. What waits is the difference between the two sides of a [`Port`], not
//! a list: a driver that gives no buffers, while its port is opened and closed, costs nothing.

use alloc::vec::Vec;

use ringway_spec::console::{
    CONSOLE_PORT, Control, PORT_ADD, PORT_NAME, PORT_OPEN, PORT_REMOVE, RESIZE, Resize,
};
use zerocopy::IntoBytes;

use super::{PortSettings, Size};

/// What a driver is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Add,
    Remove,
    Console,
    Name,
    Resize(Size),
    Open(bool),
}

/// What the driver knows of a port.
#[derive(Debug, Clone, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is so or not, whatever the others")]
struct View {
    /// It is of a port that has been removed since.
    is_stale: bool,
    is_ready: bool,
    is_console: bool,
    has_name: bool,
    size: Option<Size>,
    is_open: bool,
    /// What it has told: it opened its side.
    has_opened: bool,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Port {
    /// `None`: there is no such port.
    settings: Option<PortSettings>,
    is_open: bool,
    size: Option<Size>,
    /// `None`: the driver knows of none.
    view: Option<View>,
    /// How many bytes of the oldest chain of the transmit queue have been passed on.
    pub(super) passed_on: usize,
}

impl Port {
    pub(super) fn new(settings: PortSettings) -> Self {
        Self { is_open: settings.is_console, settings: Some(settings), ..Self::default() }
    }

    pub(super) fn exists(&self) -> bool {
        self.settings.is_some()
    }

    /// There is a new port in this place from now on, or none. Its queues go on where they are.
    pub(super) fn replace(&mut self, settings: Option<PortSettings>) {
        let mut view = self.view.take();
        if let Some(view) = &mut view {
            view.is_stale = true;
        }
        *self = Self { view, passed_on: self.passed_on, ..settings.map(Self::new).unwrap_or_default() };
    }

    pub(super) fn set_open(&mut self, is_open: bool) {
        self.is_open = is_open;
    }

    pub(super) fn set_size(&mut self, size: Size) {
        self.size = Some(size);
    }

    /// The driver forgot all it knew, and its queues are new.
    pub(super) fn forget(&mut self) {
        self.view = None;
        self.passed_on = 0;
    }

    /// The driver says whether it can use the port; false if it knows of none.
    pub(super) fn set_ready(&mut self, is_ready: bool) -> bool {
        let Some(view) = &mut self.view else { return false };
        view.is_ready = is_ready;
        view.has_opened &= is_ready;
        true
    }

    /// The driver opened or closed its side; false if it said before that it cannot use the port, or knows of none.
    pub(super) fn set_opened(&mut self, has_opened: bool) -> bool {
        let Some(view) = self.view.as_mut().filter(|view| view.is_ready) else { return false };
        view.has_opened = has_opened;
        true
    }

    /// Whether the driver has opened this very port.
    pub(super) fn has_opened(&self) -> bool {
        self.view.as_ref().is_some_and(|view| view.has_opened && !view.is_stale)
    }

    /// What the driver knows, a bit for each: that there is a port at all, and the fields of [`View`].
    pub(super) fn view_bits(&self) -> u8 {
        let Some(view) = &self.view else { return 0 };
        let View { is_stale, is_ready, is_console, has_name, size: _, is_open, has_opened } = *view;
        let fields = [true, is_stale, is_ready, is_console, has_name, is_open, has_opened];
        (0..).zip(fields).map(|(bit, is_set)| u8::from(is_set) << bit).sum()
    }

    /// Has the driver know this. Which size it was told is not among it.
    pub(super) fn set_view_bits(&mut self, bits: u8) {
        let has = |bit: u8| bits >> bit & 1 != 0;
        self.view = has(0).then(|| View {
            is_stale: has(1),
            is_ready: has(2),
            is_console: has(3),
            has_name: has(4),
            size: None,
            is_open: has(5),
            has_opened: has(6),
        });
    }

    /// What the driver is to be told next.
    pub(super) fn due(&self) -> Option<Due> {
        let (settings, view) = match (&self.settings, &self.view) {
            (None, None) => return None,
            (Some(_), None) => return Some(Due::Add),
            (Some(settings), Some(view)) if !view.is_stale => (settings, view),
            (_, Some(_)) => return Some(Due::Remove),
        };
        let size = self.size.filter(|size| settings.is_console && view.size != Some(*size));
        match view {
            View { is_ready: false, .. } => None,
            View { is_console: false, .. } if settings.is_console => Some(Due::Console),
            View { has_name: false, .. } if settings.name.is_some() => Some(Due::Name),
            _ if let Some(size) = size => Some(Due::Resize(size)),
            View { is_open, .. } => (*is_open != self.is_open).then_some(Due::Open(self.is_open)),
        }
    }

    /// The driver has been told.
    pub(super) fn told(&mut self, due: Due) {
        match (due, &mut self.view) {
            (Due::Add, view) => *view = Some(View::default()),
            (Due::Remove, view) => *view = None,
            (Due::Console, Some(view)) => view.is_console = true,
            (Due::Name, Some(view)) => view.has_name = true,
            (Due::Resize(size), Some(view)) => view.size = Some(size),
            (Due::Open(is_open), Some(view)) => view.is_open = is_open,
            (_, None) => {}
        }
    }

    /// The message that tells it of port `id`.
    pub(super) fn write_message(&self, id: u16, due: Due, to: &mut Vec<u8>) {
        let (event, value) = match due {
            Due::Add => (PORT_ADD, 0),
            Due::Remove => (PORT_REMOVE, 0),
            Due::Console => (CONSOLE_PORT, 1),
            Due::Name => (PORT_NAME, 1),
            Due::Resize(_) => (RESIZE, 0),
            Due::Open(is_open) => (PORT_OPEN, u16::from(is_open)),
        };
        to.clear();
        let control = Control { id: u32::from(id).into(), event: event.into(), value: value.into() };
        to.extend_from_slice(control.as_bytes());
        match due {
            Due::Name => {
                let name = self.settings.as_ref().and_then(|settings| settings.name.as_deref());
                to.extend_from_slice(name.unwrap_or_default().as_bytes());
            }
            Due::Resize(Size { cols, rows }) => {
                to.extend_from_slice(Resize { cols: cols.into(), rows: rows.into() }.as_bytes());
            }
            _ => {}
        }
    }
}
