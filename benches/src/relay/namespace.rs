//! A network namespace with a TUN device, and a thread that lives in it.
//!
//! A socket belongs to the namespace of the thread that made it, wherever it is used; a child
//! process to that of the thread that started it. So whatever is to be at one end of a path is
//! made by a closure that runs in that end's thread.

use anyhow::{Context as _, Result, bail, ensure};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Command;
use std::sync::mpsc::{SyncSender, sync_channel};

type Job = Box<dyn FnOnce() + Send>;

/// The TUN device's name, in either namespace.
const DEVICE: &str = "wan0";
/// From linux/if_tun.h.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

/// One end of a path.
pub(crate) struct Namespace {
    jobs: SyncSender<Job>,
}

impl Namespace {
    /// A new namespace that has `address` and reaches `peer` through the TUN device returned.
    pub(super) fn with_tun(address: Ipv4Addr, peer: Ipv4Addr) -> Result<(Self, OwnedFd)> {
        let (jobs, queue) = sync_channel::<Job>(4);
        std::thread::Builder::new()
            .name(format!("at {address}"))
            .spawn(move || {
                while let Ok(job) = queue.recv() {
                    job();
                }
            })?;
        let namespace = Self { jobs };
        let tun = namespace.run(move || set_up(address, peer))??;
        Ok((namespace, tun))
    }

    /// Runs `work` there.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = sync_channel(1);
        let job = Box::new(move || {
            let _ = answer.send(work());
        });
        if self.jobs.send(job).is_err() {
            bail!("the namespace's thread has ended");
        }
        answered.recv().context("the namespace's thread panicked")
    }
}

fn set_up(address: Ipv4Addr, peer: Ipv4Addr) -> Result<OwnedFd> {
    // SAFETY: no pointers; concerns this thread only, which has shared nothing yet.
    let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    ensure!(
        unshared == 0,
        "a network namespace needs root: {}",
        std::io::Error::last_os_error()
    );
    let tun = open_tun()?;
    let (address, peer) = (address.to_string(), peer.to_string());
    ip(&["link", "set", "lo", "up"])?;
    ip(&["addr", "add", &address, "peer", &peer, "dev", DEVICE])?;
    ip(&[
        "link",
        "set",
        DEVICE,
        "mtu",
        "1500",
        "txqueuelen",
        "10000",
        "up",
    ])?;
    // What most systems prefer, if not this one; as the route's, because only the first namespace may
    // choose it for all that is in it.
    ip(&[
        "route", "replace", &peer, "dev", DEVICE, "src", &address, "congctl", "cubic",
    ])?;
    // Windows of TCP large enough for every path measured here; the kernel's defaults are not.
    for (name, value) in [
        ("tcp_rmem", "4096 1048576 134217728"),
        ("tcp_wmem", "4096 1048576 134217728"),
        ("tcp_no_metrics_save", "1"),
    ] {
        std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value)
            .with_context(|| format!("setting {name}"))?;
    }
    Ok(tun)
}

fn open_tun() -> Result<OwnedFd> {
    let tun: OwnedFd = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .context("/dev/net/tun")?
        .into();
    // struct ifreq: a name of 16 bytes, then the flags; 40 bytes in all.
    let mut request = [0_u8; 40];
    request[..DEVICE.len()].copy_from_slice(DEVICE.as_bytes());
    let flags = u16::try_from(libc::IFF_TUN | libc::IFF_NO_PI)?;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the argument is a whole `struct ifreq` that outlives the call.
    let set = unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
    ensure!(
        set == 0,
        "making a TUN device: {}",
        std::io::Error::last_os_error()
    );
    rustix::io::ioctl_fionbio(&tun, true)?;
    Ok(tun)
}

fn ip(arguments: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(arguments).status().context("ip")?;
    ensure!(status.success(), "ip {}: {status}", arguments.join(" "));
    Ok(())
}

/// Asks for the CPU sooner than others get it, and for exact timers: this thread is the network.
pub(super) fn hurry() {
    let realtime = libc::sched_param { sched_priority: 10 };
    // SAFETY: the pointer is to a value that outlives the call; both concern the calling thread and
    // may fail, which shows in how late packets leave.
    unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const realtime);
        libc::prctl(libc::PR_SET_TIMERSLACK, 10_000_u64, 0_u64, 0_u64, 0_u64);
    }
}
