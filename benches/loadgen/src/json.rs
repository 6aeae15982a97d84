//! Results, as lines of JSON.

use std::fmt::{Display, Write};

/// An object whose values are numbers.
#[derive(Default)]
pub(crate) struct Line(String);

impl Line {
    pub(crate) fn with(mut self, name: &str, number: impl Display) -> Self {
        let separator = if self.0.is_empty() { "" } else { ", " };
        let _ = write!(self.0, "{separator}\"{name}\": {number}"); // cannot fail
        self
    }

    pub(crate) fn print(&self) {
        println!("{{{}}}", self.0);
    }
}

/// Reports the port to the process that started this one.
pub(crate) fn announce(port: u16) {
    Line::default().with("port", port).print();
}
