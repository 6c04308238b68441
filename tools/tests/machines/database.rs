//! A database in a guest, under load, with a recovery point every two seconds: of each it is known which
//! transactions were acknowledged before its moment, and which were begun after it only.
//!
//! `TIDEGATE_TEST_POINTS` says how many points; by default there are a few.

#![allow(clippy::print_stderr, reason = "tests")]

use crate::daemon::Host;
use crate::debian::{self, DOMAIN, RUN_HOOKS};
use crate::site::{Site, program, text, until};
use serde_json::Value;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tidegate_agent::clock::now_unix_ns;
use tidegate_agent::testing::{Console, Guest, GuestDisk};

/// The distance of points.
const EVERY: Duration = Duration::from_secs(2);
const POINTS: &str = "TIDEGATE_TEST_POINTS";
const POINTS_DEFAULT: u32 = 8;

/// The tables that the client writes, and one that others fight over with it.
const PREPARE: &str = "mkdir -p /srv/data; cd /srv/data; sqlite3 db 'CREATE TABLE t(n INTEGER PRIMARY KEY, \
    sum TEXT); CREATE TABLE total(rows INTEGER); INSERT INTO total VALUES(0); CREATE TABLE noise(bytes BLOB)'; \
    sync; (while :; do sqlite3 -cmd '.timeout 60000' db 'PRAGMA synchronous=EXTRA; \
    INSERT INTO noise VALUES(randomblob(3000))'; touch /srv/data/f$((RANDOM%50)); done) >/dev/null 2>&1 &";

/// Keeps the database still while the guest is frozen, by a transaction that does not write: nobody is
/// amid another one then.
const HOOK: &str = r#"printf '#!/bin/sh\n%s\n' 'case $1 in
    freeze) rm -f /run/still /run/go; mkfifo /run/go;
        { printf "BEGIN IMMEDIATE;\n.system touch /run/still\n"; cat /run/go; } |
            timeout 20 sqlite3 -bail -cmd ".timeout 8000" /srv/data/db &
        for _ in $(seq 80); do [ -e /run/still ] && exit 0; sleep 0.1; done; exit 1 ;;
    thaw) echo "ROLLBACK;" | timeout 5 tee /run/go ;;
    esac' >/etc/qemu/fsfreeze-hook.d/database; chmod 755 /etc/qemu/fsfreeze-hook.d/database"#;

/// How the machine is got at.
enum Way {
    Libvirt(Host),
    Monitor(Guest),
}

impl Way {
    fn disk(&self) -> &'static str {
        match self {
            Self::Libvirt(_) => "vda",
            Self::Monitor(_) => "system",
        }
    }

    /// Waits for the guest's agent.
    fn await_agent(&self) {
        if let Self::Libvirt(host) = self {
            until("the agent", || {
                host.virsh_may_fail(&["domtime", DOMAIN]).0.then_some(())
            });
        }
    }

    /// Makes a point, and says what there is to say of it.
    fn back_up(&self, site: &Site, quiesce: &str) -> Value {
        let monitor;
        let from = match self {
            Self::Libvirt(_) => ["--vm", DOMAIN],
            Self::Monitor(guest) => {
                monitor = guest.monitor();
                ["--qmp", text(&monitor)]
            }
        };
        let scratch = site.path("");
        let how = [
            "--machine",
            DOMAIN,
            "--quiesce",
            quiesce,
            "--scratch",
            text(&scratch),
            "--scratch-reserve",
            "1MiB",
            "--json",
        ];
        let backup = [&["backup"], &from[..], &how[..]].concat();
        let run = match self {
            Self::Libvirt(host) => host.tidegate(site, &backup),
            Self::Monitor(_) => site.tidegate(&backup),
        };
        let run = run.succeeds();
        // Nothing is left by the one before, for example.
        assert!(!run.stderr.contains("WARN"), "{}", run.stderr);
        run.json()
    }
}

/// What the client has asked for and been promised, by the clock that points are dated by. The first row
/// is number 1.
#[derive(Default)]
struct Promises {
    begun_unix_ns: Vec<u64>,
    acknowledged_unix_ns: Vec<u64>,
}

impl Promises {
    /// The least and the most rows that a point may hold whose moment lies between these times.
    fn of(&self, from_unix_ns: u64, until_unix_ns: u64) -> (usize, usize) {
        let before = |times: &[u64], end| times.partition_point(|time| *time < end);
        (
            before(&self.acknowledged_unix_ns, from_unix_ns),
            before(&self.begun_unix_ns, until_unix_ns),
        )
    }
}

/// A client of the database: a transaction at a time, each acknowledged before the next begins. With `EXTRA`
/// the deletion of the journal, which is the commit, is durable before that too.
fn insert(mut console: Console, is_over: &AtomicBool) -> Promises {
    let mut promises = Promises::default();
    // What is said before it listens, the shell may keep for itself.
    console.tell(
        "sqlite3 -batch -bail -cmd '.timeout 60000' -cmd 'PRAGMA synchronous=EXTRA' \
         -cmd \"SELECT 'it listens'\" /srv/data/db",
    );
    console.hear("it listens\n");
    for row in 1_u64.. {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        promises.begun_unix_ns.push(now_unix_ns());
        console.tell(&format!(
            "BEGIN IMMEDIATE; INSERT INTO t VALUES({row}, '{}'); UPDATE total SET rows = rows + 1; COMMIT; \
             SELECT 'row {row} stands';",
            sum(row)
        ));
        console.hear(&format!("row {row} stands\n"));
        promises.acknowledged_unix_ns.push(now_unix_ns());
    }
    console.tell(".quit");
    console.hear("RC=0\n");
    promises
}

/// What stands beside a row's number, as SQLite shows both.
fn sum(row: u64) -> String {
    blake3::hash(&row.to_le_bytes()).to_hex().to_string()
}

/// A point, and what is to be found in it.
struct Made {
    point: String,
    is_still: bool,
    held: Duration,
}

fn points_of_a_database(site: &Site, way: &Way, mut console: Console) {
    console.run(PREPARE);
    console.run(&HOOK.replace('\n', " "));
    console.run(RUN_HOOKS);
    way.await_agent();
    let count = std::env::var(POINTS).map_or(POINTS_DEFAULT, |count| count.parse().unwrap());
    let is_over = AtomicBool::new(false);
    let (made, promises) = std::thread::scope(|scope| {
        let client = scope.spawn(|| insert(console, &is_over));
        // Also when a point fails: the client is waited for.
        let made = catch_unwind(AssertUnwindSafe(|| make(site, way, count)));
        is_over.store(true, Ordering::Relaxed);
        let promises = client.join().unwrap();
        (made.unwrap_or_else(|panic| resume_unwind(panic)), promises)
    });
    let told = site.tidegate(&["points", "--json"]).succeeds().json();
    let mut rows_before = 0;
    for (number, made) in made.iter().enumerate() {
        let mut points = told.as_array().unwrap().iter();
        let point = points.find(|point| point["point"] == made.point).unwrap();
        let taken_unix_ns = point["taken_unix_ns"].as_u64().unwrap();
        let held_ns = u64::try_from(made.held.as_nanos()).unwrap();
        let (least, most) = promises.of(taken_unix_ns, taken_unix_ns + held_ns);
        let rows = judge(site, way, made);
        assert!(
            (least..=most).contains(&rows),
            "point {number}: {rows} rows, {least} were acknowledged before its moment, {most} begun"
        );
        assert!(
            rows >= rows_before,
            "point {number} is older than the one before"
        );
        rows_before = rows;
    }
    // Else there was no load.
    assert!(rows_before > 2 * made.len(), "{rows_before} rows");
    eprintln!("{} points, {rows_before} rows in the last one", made.len());
    site.tidegate(&["verify", "--all"]).succeeds();
}

/// Makes points at their times, every other one with the guest's software still.
fn make(site: &Site, way: &Way, count: u32) -> Vec<Made> {
    let mut all = Vec::new();
    let mut due = Instant::now();
    for number in 0..count {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        // After one that took longer, not at once.
        due = due.max(Instant::now() - EVERY) + EVERY;
        let is_still = number % 2 == 1;
        let told = way.back_up(site, if is_still { "require" } else { "off" });
        let expected = if is_still { "application" } else { "crash" };
        assert_eq!(told["consistency"], expected, "{told}");
        assert_eq!(told["tracking"][0]["tracked"], number > 0, "{told}");
        all.push(Made {
            point: told["point"].as_str().unwrap().to_owned(),
            is_still,
            held: Duration::from_secs_f64(told["held_seconds"].as_f64().unwrap()),
        });
    }
    all
}

/// Restores a point, and says how many rows it has, each of them right.
fn judge(site: &Site, way: &Way, made: &Made) -> usize {
    let restored = debian::restore(site, &made.point, way.disk());
    assert_eq!(restored.needed_replay, !made.is_still, "{}", made.point);
    if made.is_still {
        // The hook let every transaction end: the database needs no replay either.
        let journal = restored.data.join("db-journal");
        assert!(!journal.exists(), "{}", made.point);
    }
    let told = ask(
        &restored.data.join("db"),
        "PRAGMA integrity_check; SELECT rows FROM total; SELECT n, sum FROM t ORDER BY n",
    );
    let mut lines = told.lines();
    assert_eq!(lines.next(), Some("ok"), "{}", made.point);
    let total: usize = lines.next().unwrap().parse().unwrap();
    let rows: Vec<_> = lines.collect();
    assert_eq!(rows.len(), total, "{}: half a transaction", made.point);
    for (row, line) in (1..).zip(&rows) {
        assert_eq!(*line, format!("{row}|{}", sum(row)), "{}", made.point);
    }
    rows.len()
}

/// What SQLite answers; it rolls back first what was under way.
fn ask(database: &Path, question: &str) -> String {
    program("sqlite3", &[text(database), question])
}

#[test]
fn a_database_under_load_by_libvirt() {
    let site = Site::with_repository();
    let host = Host::start(&site, "host");
    let console = debian::start(&site, &host);
    points_of_a_database(&site, &Way::Libvirt(host), console);
}

#[test]
fn a_database_under_load_by_its_monitor() {
    let site = Site::with_repository();
    let mut guest = Guest::start_system(vec![GuestDisk {
        path: debian::disk(&site),
        format: "qcow2",
        id: Some("system".to_owned()),
    }]);
    let console = guest.take_console();
    points_of_a_database(&site, &Way::Monitor(guest), console);
}
