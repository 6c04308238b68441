//! The host's role: machines protected by policies, on a schedule.
