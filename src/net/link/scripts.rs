//! Scripts: what decides about the datagrams of a link before chance does.

use std::collections::VecDeque;

use super::verdict::Verdict;

/// The two directions of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the clients to the server.
    ToServer,
    /// From the server to the clients.
    ToClient,
}

impl Direction {
    /// Both directions.
    pub const BOTH: [Self; 2] = [Self::ToServer, Self::ToClient];
}

/// Decides about datagrams, one after another.
pub trait Decide: Send {
    /// Decides about the datagram at `index` of its direction; `None` leaves it to be drawn.
    fn decide(
        &mut self,
        direction: Direction,
        flow: u32,
        index: u64,
        payload: &[u8],
    ) -> Option<Verdict>;
}

/// Decides about the datagrams of one direction, or of both; `None` leaves all of them to be drawn.
pub type Script = Option<Box<dyn Decide>>;

/// The datagrams that a script decides about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of one direction.
    One(Direction),
    /// Those of all directions without a script of their own, in the order in which they arrive.
    Both,
}

/// The scripts of a link.
#[derive(Default)]
pub struct Scripts {
    own: [Script; 2],
    both: Script,
}

impl Scripts {
    /// Replaces one of the scripts. The new one begins with the next datagram.
    pub fn set(&mut self, scope: Scope, script: Script) {
        match scope {
            Scope::One(direction) => self.own[direction as usize] = script,
            Scope::Both => self.both = script,
        }
    }

    /// The script that decides about the datagrams of a direction.
    pub(super) fn of(&mut self, direction: Direction) -> Option<&mut dyn Decide> {
        let script = self.own[direction as usize].as_mut().or(self.both.as_mut())?;
        Some(script.as_mut())
    }
}

/// Steps for datagrams, one after another. Those after the last are drawn.
pub struct Steps(VecDeque<Option<Verdict>>);

impl Steps {
    /// A script of these steps; `None` in them leaves a datagram to be drawn.
    pub fn script(steps: impl IntoIterator<Item = Option<Verdict>>) -> Script {
        Some(Box::new(Self(steps.into_iter().collect())))
    }
}

impl Decide for Steps {
    fn decide(&mut self, _: Direction, _: u32, _: u64, _: &[u8]) -> Option<Verdict> {
        self.0.pop_front().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::link::counts::DropReason;

    /// The numbers of copies that the scripts decide on for datagrams of these directions.
    fn copies(scripts: &mut Scripts, directions: &[Direction]) -> Vec<Option<u32>> {
        let mut decide = |&direction| {
            let verdict = scripts.of(direction)?.decide(direction, 0, 0, b"")?;
            Some(if verdict.drop.is_some() { 0 } else { verdict.duplicates + 1 })
        };
        directions.iter().map(&mut decide).collect()
    }

    fn steps(texts: &[&str]) -> Script {
        Steps::script(texts.iter().map(|text| text.parse().ok()))
    }

    #[test]
    fn a_direction_without_a_script_of_its_own_shares_one() {
        use Direction::{ToClient, ToServer};
        let mut scripts = Scripts::default();
        assert_eq!(copies(&mut scripts, &[ToServer]), [None]);
        scripts.set(Scope::Both, steps(&["drop", "default", "duplicate", "duplicate 2"]));
        assert_eq!(copies(&mut scripts, &[ToServer, ToClient, ToClient]), [Some(0), None, Some(2)]);
        scripts.set(Scope::One(ToClient), steps(&["pass"]));
        let decided = copies(&mut scripts, &[ToClient, ToClient, ToServer, ToServer]);
        assert_eq!(decided, [Some(1), None, Some(3), None]);
    }

    #[test]
    fn a_new_script_begins_anew() {
        let mut scripts = Scripts::default();
        scripts.set(Scope::Both, steps(&["drop", "drop"]));
        assert_eq!(copies(&mut scripts, &[Direction::ToServer]), [Some(0)]);
        scripts.set(Scope::Both, Steps::script([Some(Verdict::drop(DropReason::Scripted)), None]));
        assert_eq!(copies(&mut scripts, &[Direction::ToClient; 2]), [Some(0), None]);
        scripts.set(Scope::Both, None);
        assert_eq!(copies(&mut scripts, &[Direction::ToServer]), [None]);
    }
}
