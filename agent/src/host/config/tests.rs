#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::retention::Period;

const EXAMPLE: &str = include_str!("../../../../systemd/host.toml");

/// The least that protects a machine.
const LEAST: &str = "
[repository.main]
location = 'repo'
key = 'host.key'
[policy.p]
every = '1h'
[machine.web01]
images = ['web01.raw']
[group.g]
machines = ['web01']
policy = 'p'
repository = 'main'
";

fn parse(text: &str) -> Result<Settings> {
    Settings::parse(text, Path::new("/etc/tidegate"))
}

fn fault(text: &str) -> String {
    let error = parse(text).unwrap_err();
    assert_eq!(error.kind(), Kind::Config);
    error.to_string()
}

#[test]
fn the_example_is_valid_and_says_what_it_seems_to() {
    let settings = parse(EXAMPLE).unwrap();
    let gold = &settings.policies["gold"];
    assert_eq!(gold.rhythm, Rhythm::Every(Duration::from_secs(900)));
    assert_eq!(gold.rpo, Some(Duration::from_secs(3600)));
    let days = |days: u64| Duration::from_secs(days * 86_400);
    let Keep::ByPeriod(keep) = &gold.keep else {
        panic!("{:?}", gold.keep);
    };
    let firsts = [
        (Period::Hour, days(3)),
        (Period::Day, days(14)),
        (Period::Week, days(56)),
        (Period::Month, days(366)),
        (Period::Year, days(7 * 366)),
    ];
    assert_eq!((keep.all, keep.firsts.as_slice()), (days(2), &firsts[..]));
    assert_eq!(keep.zone, settings.service.time_zone);
    let nightly = &settings.policies["nightly"];
    assert_eq!(nightly.keep, Keep::WithoutEnd);
    assert!(matches!(nightly.rhythm, Rhythm::Schedule(..)));
    assert_eq!(
        nightly.pre.as_ref().unwrap().timeout,
        Duration::from_secs(120)
    );
    let main = &settings.repositories["main"];
    assert_eq!(main.key, KeyPlace::Credential("host.key".to_owned()));
    assert_eq!(settings.group_of("web01").unwrap().name, "shop");
    assert_eq!(settings.group_of("db7").unwrap().name, "shop");
    assert_eq!(settings.group_of("mail").unwrap().name, "rest");
    assert!(settings.remarks().is_empty(), "{:?}", settings.remarks());
}

#[test]
fn the_effective_settings_are_a_file_that_means_the_same() {
    for text in [EXAMPLE, LEAST] {
        let settings = parse(text).unwrap();
        let effective = settings.effective().unwrap();
        let again = parse(&effective).unwrap();
        assert_eq!(again.effective().unwrap(), effective);
        assert_eq!(again.policies, settings.policies);
        assert_eq!(again.machines, settings.machines);
        assert_eq!(again.patterns, settings.patterns);
        assert_eq!(again.groups, settings.groups);
        assert_eq!(again.service.socket, settings.service.socket);
        assert_eq!(
            again.repositories["main"].location,
            settings.repositories["main"].location
        );
    }
}

#[test]
fn connections_to_a_gateway_are_the_links_and_one_unless_said() {
    let of = |settings: &Settings| settings.repositories["main"].store.link.connections;
    assert_eq!(of(&parse(LEAST).unwrap()), 1);
    let said = LEAST.replace("key = 'host.key'", "key = 'host.key'\nconnections = 16");
    let settings = parse(&said).unwrap();
    assert_eq!(of(&settings), 16);
    assert_eq!(of(&parse(&settings.effective().unwrap()).unwrap()), 16);
}

#[test]
fn paths_start_at_the_file() {
    let settings = parse(LEAST).unwrap();
    let main = &settings.repositories["main"];
    assert_eq!(main.location, "/etc/tidegate/repo");
    assert_eq!(main.key, KeyPlace::File("/etc/tidegate/host.key".into()));
    let images = settings.machines["web01"].describe();
    assert_eq!(images, ["/etc/tidegate/web01.raw"]);
}

#[test]
fn unknown_keys_are_refused_everywhere() {
    for (key, table) in [
        ("concurency", "[service]"),
        ("retention", "[policy.q]"),
        ("dayly", "[policy.q.keep]"),
        ("jitters", "[policy.q]"),
        ("comand", "[policy.q.pre]"),
        ("retries", "[repository.main.store]"),
        ("polcy", "[group.h]"),
        ("image", "[machine.m]"),
        ("names", "[[machines]]"),
        ("limits", "[[policy.p.rate]]"),
        ("serve", ""),
    ] {
        let text = match table {
            "" => format!("{key} = 1\n{LEAST}"),
            _ => format!("{LEAST}\n{table}\n{key} = 1\n"),
        };
        let fault = fault(&text);
        assert!(
            fault.contains("unknown field") && fault.contains(key),
            "{fault}"
        );
    }
}

#[test]
fn a_fault_names_its_key_what_was_found_and_what_was_expected() {
    for (from, to, words) in [
        (
            "every = '1h'",
            "every = '1x'",
            ["policy.p.every", "\"1x\"", "15m"],
        ),
        (
            "every = '1h'",
            "every = '1h'\nkeep = { daily = '14d' }",
            ["policy.p.keep.all", "every point", "nothing"],
        ),
        (
            "every = '1h'",
            "every = '1h'\nkeep = { all = '2d', daily = '8w', weekly = '8w' }",
            ["policy.p.keep.weekly", "more than daily = 8w", "found 8w"],
        ),
        (
            "every = '1h'",
            "every = '1h'\nkeep = { all = '0d' }",
            ["policy.p.keep.all", "length of time", "0d"],
        ),
        (
            "every = '1h'",
            "every = '1h'\nkeep = { all = '101y' }",
            ["policy.p.keep.all", "100y", "101y"],
        ),
        (
            "every = '1h'",
            "every = '0s'",
            ["policy.p.every", "0s", "15m"],
        ),
        (
            "every = '1h'",
            "rate = []",
            ["policy.p", "every, schedule or rpo", "none"],
        ),
        (
            "every = '1h'",
            "every = '1h'\nschedule = '@daily'",
            ["policy.p", "one of", "both"],
        ),
        (
            "every = '1h'",
            "schedule = '61 * * * *'",
            ["policy.p.schedule", "61", "five fields"],
        ),
        (
            "every = '1h'",
            "schedule = '0 0 31 2 *'",
            ["policy.p.schedule", "31 2", "never"],
        ),
        (
            "every = '1h'",
            "schedule = '* * * * * *'",
            ["policy.p.schedule", "* * * * * *", "five"],
        ),
        (
            "every = '1h'",
            "every = '1h'\nrpo = '30m'",
            ["policy.p.rpo", "30m", "1h"],
        ),
        (
            "every = '1h'",
            "every = '1h'\njitter = '2h'",
            ["policy.p.jitter", "2h", "1h"],
        ),
        (
            "every = '1h'",
            "every = '1h'\nlimit = '5'",
            ["policy.p.limit", "\"5\"", "Mbit/s"],
        ),
        (
            "every = '1h'",
            "every = '1h'\nlimit = '1 kB/s'",
            ["policy.p.limit", "1 kB/s", "at least"],
        ),
        (
            "every = '1h'",
            "every = '1h'\nrate = [{ from = '8', to = '18:00', limit = '1 MB/s' }]",
            ["policy.p.rate[0].from", "\"8\"", "08:00"],
        ),
        (
            "every = '1h'",
            "every = '1h'\npre = { command = ['sync'] }",
            ["policy.p.pre.command", "sync", "whole path"],
        ),
        (
            "policy = 'p'",
            "policy = 'q'",
            ["group.g.policy", "\"q\"", "there is p"],
        ),
        (
            "repository = 'main'",
            "repository = 'm'",
            ["group.g.repository", "\"m\"", "main"],
        ),
        (
            "machines = ['web01']",
            "machines = ['web02']",
            ["group.g.machines", "web02", "web01"],
        ),
        (
            "policy = 'p'\nrepository",
            "together_within = '2m'\npolicy = 'p'\nrepository",
            ["group.g.together_within", "1ms to 1m", "2m"],
        ),
        (
            "machines = ['web01']",
            "machines = []",
            ["group.g.machines", "at least one", "none"],
        ),
        (
            "images = ['web01.raw']",
            "images = []",
            ["machine.web01.images", "at least one", "none"],
        ),
        (
            "images = ['web01.raw']",
            "images = ['web01.raw']\nvm = 'web01'",
            ["machine.web01", "one of images, vm and qmp", "several"],
        ),
        (
            "images = ['web01.raw']",
            "images = ['web01.raw']\nconnect = 'qemu:///system'",
            ["machine.web01.connect", "beside vm", "without"],
        ),
        (
            "images = ['web01.raw']",
            "vm = 'web01'\nskip_check = true",
            ["machine.web01.skip_check", "beside images", "without"],
        ),
        (
            "images = ['web01.raw']",
            "qmp = 'a'\n[machine.web02]\nqmp = '/etc/tidegate/a'",
            ["machine.web02.qmp", "machine.web01", "the same"],
        ),
        (
            "images = ['web01.raw']",
            "vm = ' '",
            ["machine.web01.vm", "a name", "nothing"],
        ),
        (
            "images = ['web01.raw']",
            "images = ['x']\nformat = 'iso'",
            ["machine.web01.format", "iso", "qcow2"],
        ),
        (
            "key = 'host.key'",
            "key = 'credential:../x'",
            ["repository.main.key", "../x", "NAME"],
        ),
        (
            "key = 'host.key'",
            "key = 'host.key'\npack_mib = 65",
            ["repository.main.pack_mib", "65", "1 to 64"],
        ),
        (
            "key = 'host.key'",
            "key = 'host.key'\nconnections = 17",
            ["repository.main.connections", "17", "1 to 16"],
        ),
        (
            "key = 'host.key'",
            "key = 'host.key'\nconnections = 0",
            ["repository.main.connections", "0", "1 to 16"],
        ),
        (
            "[policy.p]",
            "[service]\nlisten = '9464'\n[policy.p]",
            ["service.listen", "9464", ":9464"],
        ),
        (
            "[policy.p]",
            "[service]\ntime_zone = 'Mars/Base'\n[policy.p]",
            ["service.time_zone", "Mars/Base", "Europe/Berlin"],
        ),
        (
            "[policy.p]",
            "[[machines]]\npattern = '/srv/**/x'\n[policy.p]",
            ["machines[0].pattern", "/srv/**/x", "**"],
        ),
        (
            "[policy.p]",
            "[[machines]]\npattern = '/srv/*'\nname = 'x'\n[policy.p]",
            ["machines[0].name", "\"x\"", "{stem}"],
        ),
        (
            "[group.g]",
            "[group.f]\nmachines = ['web01']\npolicy = 'p'\nrepository = 'main'\n[group.g]",
            ["group.g.machines", "web01", "group.f"],
        ),
        (
            "[machine.web01]",
            "[machine.'a b']",
            ["machine.a b", "blanks", "name"],
        ),
    ] {
        assert!(LEAST.contains(from), "{from}");
        let text = LEAST.replacen(from, to, 1);
        let fault = fault(&text);
        for word in words {
            assert!(fault.contains(word), "{to}: {word:?} is not in: {fault}");
        }
    }
}

#[test]
fn oversights_are_remarked() {
    let text = format!("{LEAST}[machine.lost]\nimages = ['x']\n[policy.unused]\nrpo = '1h'\n");
    let remarks = parse(&text).unwrap().remarks();
    assert_eq!(remarks.len(), 2, "{remarks:?}");
    assert!(remarks[0].contains("machine.lost"), "{remarks:?}");
    assert!(remarks[1].contains("policy.unused"), "{remarks:?}");
}

#[test]
fn limits_follow_the_clock_of_the_zone() {
    let text = LEAST.replace(
        "every = '1h'",
        "every = '1h'
        limit = '100 Mbit/s'
        [[policy.p.rate]]
        from = '08:00'
        to = '18:00'
        days = 'mon-fri'
        limit = '50 Mbit/s'
        [[policy.p.rate]]
        from = '22:00'
        to = '06:00'
        days = 'fri'
        limit = '800 Mbit/s'",
    );
    let settings = parse(&text).unwrap();
    let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
    let limit = |moment: &str| {
        let moment: Timestamp = moment.parse().unwrap();
        settings.policies["p"].limit_at(moment, &berlin).unwrap() * 8 / 1_000_000
    };
    // 2026-11-20 is a Friday.
    assert_eq!(limit("2026-11-20T06:59:59Z"), 100);
    assert_eq!(limit("2026-11-20T07:00:00Z"), 50);
    assert_eq!(limit("2026-11-20T16:59:59Z"), 50);
    assert_eq!(limit("2026-11-20T17:00:00Z"), 100);
    assert_eq!(limit("2026-11-20T21:00:00Z"), 800);
    assert_eq!(
        limit("2026-11-21T04:59:59Z"),
        800,
        "Friday's window ends on Saturday"
    );
    assert_eq!(limit("2026-11-21T05:00:00Z"), 100);
    assert_eq!(limit("2026-11-21T21:30:00Z"), 100, "Saturday has none");
    assert_eq!(limit("2026-11-21T08:00:00Z"), 100);
}
