//! The gateway's role: beside the bucket, for hosts that reach it over the [`crate::link`].

pub mod authority;
