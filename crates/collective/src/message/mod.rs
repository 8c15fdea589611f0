//! Groups by passing messages: everything that [`Group`](crate::Group) and [`Collective`](crate::Collective) ask for, over
//! any [`Wire`].

mod call;
mod gather;
mod group;
mod reduce;
mod standing;
mod team;
mod wire;

pub use call::{Call, Op};
pub use group::Messages;
pub use standing::Standing;
pub use wire::{Buffer, Incoming, Outgoing, Wire};

pub(crate) use gather::{all_gather, cut};
pub(crate) use reduce::{Parallel, Reduce, Scratch};
pub(crate) use team::Team;
