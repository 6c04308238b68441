//! A bound on how many bytes leave in a second, shared by whoever sends.
//!
//! Whole objects are let through, not bytes: what is sent at once is one object (a pack, 32 MiB by
//! default), and the mean over longer than that keeps to the rate. Not a queue: who waits longest is
//! served first only by chance. The rate may change while somebody waits.
//!
//! The pacer keeps an account: each object is charged in full when it is let through, and the next
//! has to wait until the charge has been paid off. So nobody waits before the first object, and idle
//! time is not saved up.

use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;
use tokio::time::{Duration, Instant};

/// A bound on bytes a second.
#[derive(Debug)]
pub struct Pacer {
    account: Mutex<Account>,
    changed: Notify,
}

#[derive(Debug)]
struct Account {
    /// None: no bound.
    bytes_per_second: Option<u64>,
    /// What was sent and is not paid off yet, at `as_of`.
    owed_bytes: f64,
    as_of: Instant,
}

impl Pacer {
    /// A pacer with this rate, or none.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self {
            account: Mutex::new(Account {
                bytes_per_second,
                owed_bytes: 0.0,
                as_of: Instant::now(),
            }),
            changed: Notify::new(),
        }
    }

    /// Changes the rate; those who wait are reckoned anew.
    pub fn set(&self, bytes_per_second: Option<u64>) {
        let mut account = self.account.lock().unwrap_or_else(PoisonError::into_inner);
        if account.bytes_per_second == bytes_per_second {
            return;
        }
        account.settle(Instant::now());
        account.bytes_per_second = bytes_per_second;
        drop(account);
        self.changed.notify_waiters();
    }

    /// The rate, in bytes a second.
    pub fn bytes_per_second(&self) -> Option<u64> {
        self.account
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .bytes_per_second
    }

    /// Waits until so many bytes may be sent. Giving up waiting costs nothing.
    pub async fn let_through(&self, bytes: u64) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Before the look at the account: what changes after it must wake us.
            changed.as_mut().enable();
            let pause = {
                let mut account = self.account.lock().unwrap_or_else(PoisonError::into_inner);
                account.settle(Instant::now());
                match account.pause() {
                    None => {
                        account.charge(bytes);
                        return;
                    }
                    Some(pause) => pause,
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = changed => {}
            }
        }
    }
}

impl Account {
    #[expect(clippy::cast_precision_loss, reason = "bytes of some objects")]
    fn settle(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.as_of).as_secs_f64();
        self.as_of = now;
        self.owed_bytes = match self.bytes_per_second {
            None => 0.0,
            Some(rate) => (self.owed_bytes - rate as f64 * elapsed).max(0.0),
        };
    }

    #[expect(clippy::cast_precision_loss, reason = "bytes of some objects")]
    fn pause(&self) -> Option<Duration> {
        let rate = self.bytes_per_second?.max(1) as f64;
        // Less than a byte is a rounding error.
        (self.owed_bytes >= 1.0).then(|| {
            let pause = Duration::try_from_secs_f64(self.owed_bytes / rate);
            pause.unwrap_or(Duration::MAX).max(Duration::from_millis(1))
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "bytes of some objects")]
    fn charge(&mut self, bytes: u64) {
        if self.bytes_per_second.is_some() {
            self.owed_bytes += bytes as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::sync::Arc;

    fn account(bytes_per_second: Option<u64>, now: Instant) -> Account {
        Account {
            bytes_per_second,
            owed_bytes: 0.0,
            as_of: now,
        }
    }

    /// When the last of `count` objects of `bytes` each is let through.
    fn send(account: &mut Account, mut now: Instant, count: u64, bytes: u64) -> Instant {
        for _ in 0..count {
            account.settle(now);
            while let Some(pause) = account.pause() {
                now += pause;
                account.settle(now);
            }
            account.charge(bytes);
        }
        now
    }

    #[test]
    fn the_mean_keeps_to_the_rate_and_idle_time_is_not_saved_up() {
        let began = Instant::now();
        let mut account = account(Some(1000), began);
        for idle in [0, 1000] {
            let began = began + Duration::from_secs(idle);
            // The first goes at once, and nine more pay for the one before.
            let took = (send(&mut account, began, 10, 2000) - began).as_secs_f64();
            assert!((17.99..18.1).contains(&took), "{took}");
        }
    }

    #[test]
    fn without_a_rate_nobody_waits() {
        let began = Instant::now();
        let mut account = account(None, began);
        assert_eq!(send(&mut account, began, 100, 1 << 40), began);
    }

    #[tokio::test]
    async fn a_new_rate_counts_for_those_who_wait() {
        let pacer = Arc::new(Pacer::new(Some(1)));
        pacer.let_through(1_000_000_000).await;
        let waiting = Arc::clone(&pacer);
        let sent = tokio::spawn(async move { waiting.let_through(1).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!sent.is_finished());
        pacer.set(None);
        // By the old rate it would be thirty years.
        tokio::time::timeout(Duration::from_secs(60), sent)
            .await
            .unwrap()
            .unwrap();
    }
}
