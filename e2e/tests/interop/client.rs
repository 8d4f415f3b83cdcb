//! The real Client.
