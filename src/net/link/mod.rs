//! A link between clients and a server that loses, delays, repeats and reorders datagrams.
//!
//! A [`LinkPath`] decides about the datagrams of one direction; it knows neither sockets nor
//! clocks. A [`Relay`] is a thread that moves datagrams between sockets, through two of them.

mod counts;
mod draws;
mod fates;
mod impairments;
mod path;
mod relay;
mod scripts;
mod verdict;

pub use counts::{DropReason, FateRecord, LinkCounts};
pub use impairments::{Impairments, Loss, WrongImpairment};
pub use path::{Departure, LinkPath};
pub use relay::{Captured, LinkAddresses, Pending, Relay, RelayOptions};
pub use scripts::{Decide, Direction, Scope, Script, Scripts, Steps};
pub use verdict::{Verdict, parse_duration};
