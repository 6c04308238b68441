//! Who is at the other end of a Unix socket, and whether they may give orders.

use crate::error::{Error, Kind, Result};
use rustix::net::sockopt::socket_peercred;
use std::os::fd::{AsFd, AsRawFd};

/// Most groups that a process may be in, by Linux's own bound.
const GROUPS_MAX: usize = 65_536;

/// Lets root, the service's own user, and members of the group `group` pass.
///
/// # Errors
/// [`Kind::Denied`] for all others.
pub(super) fn check(socket: impl AsFd, group: Option<u32>, group_name: &str) -> Result<()> {
    let peer = socket_peercred(socket.as_fd())
        .map_err(|error| Error::io("cannot tell who is at the control socket", error.into()))?;
    let uid = peer.uid.as_raw();
    if uid == 0 || uid == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    if let Some(group) = group
        && (peer.gid.as_raw() == group || groups(&socket)?.contains(&group))
    {
        return Ok(());
    }
    Err(Error::new(
        Kind::Denied,
        format!("user {uid} may not control the host service"),
    )
    .advise(format!(
        "root, the service's user and members of the group {group_name} may"
    )))
}

/// The peer's supplementary groups, as they were when it connected.
fn groups(socket: &impl AsFd) -> Result<Vec<u32>> {
    let mut groups = vec![0_u32; 64];
    loop {
        let mut bytes = libc::socklen_t::try_from(std::mem::size_of_val(groups.as_slice()))
            .unwrap_or(libc::socklen_t::MAX);
        // SAFETY: the pointer and the length describe `groups`, whose elements are what the kernel
        // writes (gid_t is u32); it writes no more than that length.
        let answer = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let found = bytes as usize / size_of::<u32>();
        if answer == 0 {
            groups.truncate(found);
            return Ok(groups);
        }
        let error = std::io::Error::last_os_error();
        // It says how much room is needed.
        if error.raw_os_error() == Some(libc::ERANGE)
            && (groups.len() + 1..=GROUPS_MAX).contains(&found)
        {
            groups.resize(found, 0);
            continue;
        }
        return Err(Error::io("cannot tell who is at the control socket", error));
    }
}

/// The number of a local group; none where there is no such group.
pub(super) fn group_number(name: &str) -> Option<u32> {
    let all = std::fs::read_to_string("/etc/group").ok()?;
    all.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()? == name;
        let number = fields.nth(1)?.parse().ok()?;
        found.then_some(number)
    })
}
