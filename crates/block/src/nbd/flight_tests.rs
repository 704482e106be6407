//! The flight, with bytes for a server.
