#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;

fn run(name: &str, started: u64, outcome: Option<Outcome>) -> RunRow {
    RunRow {
        run: name.to_owned(),
        machine: "web01".to_owned(),
        repository: "main".to_owned(),
        started_unix_ns: started,
        ended_unix_ns: outcome.map(|_| started + 5),
        outcome,
        point: None,
        point_unix_ns: matches!(outcome, Some(Outcome::Ok)).then_some(started + 1),
        read_bytes: 7,
        new_bytes: 6,
        stored_bytes: 5,
        error: None,
        warning: None,
        frozen: None,
    }
}

fn web01() -> MachineRow {
    MachineRow {
        machine: "web01".to_owned(),
        first_seen_unix_ns: 1,
        gone_unix_ns: None,
    }
}

fn reopen(folder: &Path) -> Remembered {
    let (state, mut remembered) = State::open(folder, 1000).unwrap();
    assert_eq!(state.trouble(), None);
    state.close();
    remembered.remove("web01").unwrap()
}

#[test]
fn runs_are_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let (state, remembered) = State::open(folder.path(), 0).unwrap();
    assert!(remembered.is_empty());
    state.save_machine(web01());
    state.save_run(run("a", 10, None));
    state.save_run(run("a", 10, Some(Outcome::Ok)));
    let mut failed = run("b", 20, Some(Outcome::Failed));
    failed.error = Some(Fault {
        kind: "unavailable".to_owned(),
        message: "nobody answers".to_owned(),
        advice: Some("wait".to_owned()),
    });
    failed.warning = Some("a hook failed".to_owned());
    failed.frozen = Some(FrozenRow {
        consistency: "crash".to_owned(),
        held_ns: 17,
        tracking: vec![DiskTracking {
            disk: "vda".to_owned(),
            trackable: true,
            tracked: false,
            reason: "the bitmap is gone".to_owned(),
            audited_blocks: 3,
            false_chunks: 1,
        }],
        left_out: vec![LeftOut {
            name: "sda".to_owned(),
            why: "it is no disk".to_owned(),
        }],
    });
    state.save_run(failed.clone());
    state.close();

    let remembered = reopen(folder.path());
    assert_eq!(remembered.last, Some(failed));
    assert_eq!(remembered.last_ok, Some(run("a", 10, Some(Outcome::Ok))));
    assert_eq!(
        remembered.history,
        History {
            first_seen_unix_ns: 1,
            counted_unix_ns: Some(10),
            point_unix_ns: Some(11),
            ended_unix_ns: Some(25),
            took: Some(Duration::from_nanos(5)),
            failures: 1,
            interruptions: 0,
        }
    );
}

#[test]
fn a_run_without_an_end_was_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    let (state, _) = State::open(folder.path(), 0).unwrap();
    state.save_machine(web01());
    state.save_run(run("a", 10, None));
    state.close();
    for _ in 0..2 {
        let remembered = reopen(folder.path());
        let last = remembered.last.unwrap();
        assert_eq!(last.outcome, Some(Outcome::Interrupted));
        assert_eq!(last.ended_unix_ns, Some(1000));
        assert_eq!(last.error.unwrap().kind, "interrupted");
        assert_eq!(remembered.history.interruptions, 1);
        assert_eq!(remembered.history.counted_unix_ns, None);
    }
}

#[test]
fn a_damaged_file_is_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("host.sqlite"), vec![7; 20_000]).unwrap();
    let (state, remembered) = State::open(folder.path(), 0).unwrap();
    assert!(remembered.is_empty());
    assert_eq!(state.trouble(), None);
    state.save_machine(web01());
    state.close();
    assert_eq!(reopen(folder.path()).history.first_seen_unix_ns, 1);
    assert!(folder.path().join("host.sqlite.damaged").exists());
}

#[test]
fn rows_wait_for_a_folder_that_cannot_be_made() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("state");
    // A file stands where the folder should.
    std::fs::write(&place, "").unwrap();
    let (state, remembered) = State::open(&place, 0).unwrap();
    assert!(remembered.is_empty());
    assert!(state.trouble().is_some());
    state.save_machine(web01());
    state.save_run(run("a", 10, Some(Outcome::Ok)));
    std::fs::remove_file(&place).unwrap();
    state.close();
    assert_eq!(reopen(&place).history.counted_unix_ns, Some(10));
}

#[test]
fn old_runs_are_dropped_and_machines_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let (state, _) = State::open(folder.path(), 0).unwrap();
    state.save_machine(web01());
    for number in 0..u64::from(RUNS_KEPT) + 20 {
        state.save_run(run(&number.to_string(), number, Some(Outcome::Ok)));
    }
    state.close();
    let file = rusqlite::Connection::open(folder.path().join("host.sqlite")).unwrap();
    let count = || file.query_row("SELECT count(*) FROM run", [], |row| row.get::<_, u32>(0));
    assert_eq!(count().unwrap(), RUNS_KEPT);
    let (state, _) = State::open(folder.path(), 0).unwrap();
    state.forget("web01");
    state.close();
    assert_eq!(count().unwrap(), 0);
}

#[test]
fn hours_add_up_and_are_kept_for_a_week() {
    let folder = tempfile::tempdir().unwrap();
    let (state, _) = State::open(folder.path(), 0).unwrap();
    state.save_machine(web01());
    let mut remembered = Remembered::default();
    let begun = 500_000 * HOUR_NS;
    let one = Hour {
        runs: 1,
        requests: 3,
        audited_blocks: 10,
        false_chunks: 1,
        held_ns_max: 40,
    };
    let longer = Hour {
        held_ns_max: 70,
        ..one
    };
    // Each half an hour, for eight days.
    for half in 0..8 * 48 {
        let run = if half == 8 * 48 - 3 { longer } else { one };
        let (number, hour) = remembered.count(begun + half * HOUR_NS / 2, &run);
        state.save_hour("web01", number, hour);
    }
    state.close();
    let now = begun + 8 * 24 * HOUR_NS - 1;
    for remembered in [remembered, reopen(folder.path())] {
        assert_eq!(remembered.hours.len() as u64, HOURS_KEPT);
        let day = remembered.within(now, 24);
        assert_eq!((day.runs, day.requests, day.held_ns_max), (48, 144, 70));
        let week = remembered.within(now, HOURS_KEPT);
        assert_eq!((week.audited_blocks, week.false_chunks), (3360, 336));
        assert_eq!(
            remembered.within(now + 7 * 24 * HOUR_NS, HOURS_KEPT),
            Hour::default()
        );
    }
}
