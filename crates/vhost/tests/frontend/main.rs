//! The front-end's role: what it says, in which order, to a back-end that writes it down; and what it does with
//! a back-end of ours.

mod book;
mod echo;
mod order;
mod transfers;
