//! Where chunks end.
