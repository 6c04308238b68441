//! A Debian with systemd, a database and its own guest agent, whose software is still for the moment of a
//! point; and that it is let go whatever becomes of whoever asked for it.

use crate::daemon::Host;
use crate::debian::{self, DOMAIN, RUN_HOOKS};
use crate::site::{Site, program, text, until};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use tidegate_agent::testing::Console;

/// A row a transaction, each durable before it is acknowledged.
const WRITER: &str = "mkdir -p /srv/data; cd /srv/data; sqlite3 db 'CREATE TABLE t(n INTEGER PRIMARY KEY)'; \
    n=0; echo 0 >/run/acked; (while :; do n=$((n+1)); \
    sqlite3 db \"PRAGMA synchronous=EXTRA; INSERT INTO t VALUES($n)\" && echo $n >/run/acked; \
    touch /srv/data/f$((n%50)); done) >/dev/null 2>&1 &";

/// Tells which hooks were run.
const HOOK: &str = "printf '#!/bin/sh\\necho $1 >>/run/hooked\\n' >/etc/qemu/fsfreeze-hook.d/noted; \
    chmod 755 /etc/qemu/fsfreeze-hook.d/noted";

/// `virsh` as it is, but for a backup that never begins: the guest stays frozen for it.
const SLOW_VIRSH: &str = "#!/bin/sh\ncase \"$*\" in *backup-begin*) echo $$ >FOLDER/begins; \
    exec sleep 600;; esac\nexec /usr/bin/virsh \"$@\"\n";

struct Guest<'a> {
    site: &'a Site,
    host: &'a Host,
    console: Console,
}

/// What a point was worth as it was made, and how many rows were promised before and after.
struct Made {
    told: Value,
    least: u64,
    most: u64,
}

impl<'a> Guest<'a> {
    fn start(site: &'a Site, host: &'a Host) -> Self {
        let mut console = debian::start(site, host);
        console.run(HOOK);
        console.run(RUN_HOOKS);
        console.run(WRITER);
        let guest = Self {
            site,
            host,
            console,
        };
        until("the agent", || guest.agent_answers().then_some(()));
        guest
    }

    fn agent_answers(&self) -> bool {
        self.host.virsh_may_fail(&["domtime", DOMAIN]).0
    }

    fn acknowledged(&mut self) -> u64 {
        self.console.run("cat /run/acked").trim().parse().unwrap()
    }

    fn assert_writes(&mut self) {
        let before = self.acknowledged();
        until("the guest to write", || {
            (self.acknowledged() > before + 1).then_some(())
        });
    }

    fn is_frozen(&self) -> bool {
        let ask = r#"{"execute": "guest-fsfreeze-status"}"#;
        let told = self.host.virsh(&["qemu-agent-command", DOMAIN, ask]);
        told.contains("frozen")
    }

    fn backup<'b>(&self, scratch: &'b str, quiesce: &'b str) -> [&'b str; 10] {
        [
            "backup",
            "--vm",
            DOMAIN,
            "--quiesce",
            quiesce,
            "--scratch",
            scratch,
            "--scratch-reserve",
            "1MiB",
            "--json",
        ]
    }

    /// Makes a point, and says what standard error said.
    fn back_up(&mut self, quiesce: &str) -> (Made, String) {
        let scratch = text(&self.site.path("")).to_owned();
        let least = self.acknowledged();
        let backup = self.backup(&scratch, quiesce);
        let run = self.host.tidegate(self.site, &backup).succeeds();
        let made = Made {
            told: run.json(),
            least,
            // One may be on its way.
            most: self.acknowledged() + 1,
        };
        (made, run.stderr)
    }

    fn points(&self) -> Vec<Value> {
        let told = self.site.tidegate(&["points", "--json"]).succeeds().json();
        told.as_array().cloned().unwrap_or_default()
    }

    /// Restores a point and looks at its file system and database; says whether the journal of the file
    /// system had to be replayed.
    fn judge(&self, made: &Made) -> bool {
        let restored = debian::restore(self.site, made.told["point"].as_str().unwrap(), "vda");
        let database = restored.data.join("db");
        let look = "PRAGMA integrity_check; SELECT count(*) || ' ' || max(n) FROM t";
        let told = program("sqlite3", &[text(&database), look]);
        let (integrity, rows) = told.trim().split_once('\n').unwrap();
        assert_eq!(integrity, "ok");
        let (count, last) = rows.split_once(' ').unwrap();
        assert_eq!(count, last, "a row is missing");
        let rows: u64 = count.parse().unwrap();
        assert!(
            (made.least..=made.most).contains(&rows),
            "{rows} rows, {} were promised before the backup and {} after it",
            made.least,
            made.most
        );
        restored.needed_replay
    }

    /// Starts a backup that freezes the guest, and goes no further.
    fn freeze_and_hang(&self) -> Child {
        let folder = self.site.path("slow");
        std::fs::create_dir_all(&folder).unwrap();
        let slow = folder.join("virsh");
        std::fs::write(&slow, SLOW_VIRSH.replace("FOLDER", text(&folder))).unwrap();
        program("chmod", &["755", text(&slow)]);
        let path = std::env::var("PATH").unwrap();
        let scratch = text(&self.site.path("")).to_owned();
        let child = self
            .host
            .command(self.site, &self.backup(&scratch, "require"))
            .env("PATH", format!("{}:{path}", text(&folder)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("the moment", || self.begins().exists().then_some(()));
        child
    }

    /// Holds the process that would begin the backup.
    fn begins(&self) -> PathBuf {
        self.site.path("slow/begins")
    }
}

/// One guest, many checks: booting it costs more than most of them.
#[test]
fn points_of_a_domain_whose_software_is_still() {
    let site = Site::with_repository();
    let host = Host::start(&site, "host");
    let mut guest = Guest::start(&site, &host);
    guest.assert_writes();

    let (made, _) = guest.back_up("off");
    assert_eq!(made.told["consistency"], "crash");
    assert!(guest.judge(&made), "the guest has written nothing");
    assert!(!guest.console.run("ls /run").contains("hooked"));

    let (made, _) = guest.back_up("require");
    assert_eq!(made.told["consistency"], "application", "{}", made.told);
    assert!(made.told["held_seconds"].as_f64().unwrap() > 0.0);
    assert!(!guest.judge(&made), "a journal was left to be replayed");
    let hooked = guest.console.run("cat /run/hooked");
    let hooked: Vec<_> = hooked.split_whitespace().collect();
    assert_eq!(hooked, ["freeze", "thaw"]);
    let recorded = guest.points();
    let recorded = recorded.iter().map(|point| &point["consistency"]);
    assert_eq!(recorded.collect::<Vec<_>>(), ["crash", "application"]);

    found_frozen(&mut guest);
    killed_while_frozen(&mut guest);
    without_an_agent(&mut guest);
    site.tidegate(&["verify", "--all"]).succeeds();
}

/// Somebody was killed together with all that would have thawed it.
fn found_frozen(guest: &mut Guest<'_>) {
    guest.host.virsh(&["domfsfreeze", DOMAIN]);
    assert!(guest.is_frozen());
    // Not by `back_up`: the console may wait for the file system.
    let scratch = text(&guest.site.path("")).to_owned();
    let backup = guest.backup(&scratch, "require");
    let run = guest.host.tidegate(guest.site, &backup).succeeds();
    assert_eq!(run.json()["consistency"], "application");
    guest.assert_writes();
}

fn killed_while_frozen(guest: &mut Guest<'_>) {
    let mut child = guest.freeze_and_hang();
    assert!(guest.is_frozen());
    child.kill().unwrap();
    child.wait().unwrap();
    until("the guard", || (!guest.is_frozen()).then_some(()));
    guest.assert_writes();
    let begins = std::fs::read_to_string(guest.begins()).unwrap();
    program("kill", &[begins.trim()]);
}

/// Its agent does not run: that is said, or there is no point and nothing is left of one.
fn without_an_agent(guest: &mut Guest<'_>) {
    guest.console.run("systemctl stop qemu-guest-agent");
    until("its end", || (!guest.agent_answers()).then_some(()));
    let (made, said) = guest.back_up("prefer");
    assert_eq!(made.told["consistency"], "crash");
    assert!(said.contains("as after a power cut"), "{said}");
    // There is nothing to be thawed, so nobody says that there might be.
    assert!(!said.contains("may still be frozen"), "{said}");
    assert!(guest.judge(&made));

    let points = guest.points().len();
    let checkpoints = || guest.host.virsh(&["checkpoint-list", DOMAIN, "--name"]);
    let before = checkpoints();
    let scratch = text(&guest.site.path("")).to_owned();
    let backup = guest.backup(&scratch, "require");
    let refused = guest.host.tidegate(guest.site, &backup).ends_with(6);
    let refused = refused.says(&["could not be frozen", "qemu-guest-agent"]);
    assert!(
        !refused.stderr.contains("may still be"),
        "{}",
        refused.stderr
    );
    assert_eq!(guest.points().len(), points);
    assert_eq!(checkpoints(), before);
    let job = guest.host.virsh_may_fail(&["backup-dumpxml", DOMAIN]);
    assert!(!job.0, "{}", job.1);
    guest.assert_writes();
}
