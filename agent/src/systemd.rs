//! What systemd is told, where it started the service.
//!
//! A thread of its own tells it: the socket blocks when nobody reads, and the loop does not wait.

use sd_notify::NotifyState;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Messages on their way; what does not fit is dropped, since systemd reads none.
const MESSAGES_IN_FLIGHT: usize = 16;

/// How long the end of the service waits for systemd to listen.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(1);

type Message = Vec<NotifyState<'static>>;

/// The way to systemd.
pub(crate) struct Systemd {
    messages: Option<SyncSender<Message>>,
    thread: Option<JoinHandle<()>>,
    watchdog: Option<Watchdog>,
}

struct Watchdog {
    /// Thrice in the time that it waits for us.
    every: Duration,
    told: Instant,
}

impl Systemd {
    pub(crate) fn new() -> Self {
        let (messages, taken) = sync_channel::<Message>(MESSAGES_IN_FLIGHT);
        let tell = move || {
            for message in taken {
                if let Err(error) = sd_notify::notify(&message) {
                    tracing::warn!(%error, "cannot tell systemd how the service is");
                }
            }
        };
        let thread = std::thread::Builder::new().name("tidegate-systemd".to_owned());
        let thread = thread.spawn(tell).ok();
        Self {
            messages: thread.is_some().then_some(messages),
            thread,
            watchdog: sd_notify::watchdog_enabled().map(|time| Watchdog {
                every: time / 3,
                told: Instant::now(),
            }),
        }
    }

    /// The service is ready; `status` is what `systemctl status` shows.
    pub(crate) fn ready(&self, status: &'static str) {
        self.tell(vec![NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// The configuration is being read; to be followed by [`Self::ready`].
    pub(crate) fn reloading(&self) {
        let mut message = vec![NotifyState::Reloading];
        message.extend(NotifyState::monotonic_usec_now().ok());
        self.tell(message);
    }

    /// The service is stopping.
    pub(crate) fn stopping(&self) {
        self.tell(vec![NotifyState::Stopping]);
    }

    /// The loop goes round: feeds the watchdog, when it is time. Says when it will be again.
    pub(crate) fn alive(&mut self) -> Duration {
        let Some(Watchdog { every, told }) = &mut self.watchdog else {
            return Duration::MAX;
        };
        let every = *every;
        let left = every.saturating_sub(told.elapsed());
        if !left.is_zero() {
            return left;
        }
        *told = Instant::now();
        self.tell(vec![NotifyState::Watchdog]);
        every
    }

    /// Sees to it that systemd has been told everything, if it listens at all. Blocks.
    pub(crate) fn close(mut self) {
        self.messages = None;
        let deadline = Instant::now() + CLOSE_TIME_MAX;
        let is_busy = || {
            self.thread
                .as_ref()
                .is_some_and(|thread| !thread.is_finished())
        };
        while is_busy() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn tell(&self, message: Message) {
        if let Some(messages) = &self.messages
            && messages.try_send(message).is_err()
        {
            tracing::warn!("systemd does not read what it is told");
        }
    }
}
