//! What the package holds besides programs: units, alert rules, defaults that must agree with the code.
//! Nothing is started here; `systemd.rs` does that.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

mod site;

use site::program;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tidegate_agent::host::config::Settings;
use tidegate_agent::{gateway, host, link, metrics};

const HOST: &str = "tidegated-host.service";
const GATEWAY: &str = "tidegated-gateway.service";

/// What `systemd-analyze security` may say at most, in tenths.
const EXPOSURE_MAX_TENTHS: u32 = 20;

fn file(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../systemd")
        .join(name);
    path.canonicalize().unwrap()
}

fn read(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap()
}

/// The values of a unit's key, in their order.
fn values(unit: &str, key: &str) -> Vec<String> {
    let text = read(unit);
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    lines.map(str::to_owned).collect()
}

#[test]
fn units_expose_little() {
    for unit in [HOST, GATEWAY] {
        let said = program(
            "systemd-analyze",
            &[
                "security",
                "--offline=true",
                "--no-pager",
                site::text(&file(unit)),
            ],
        );
        let last = said.lines().last().unwrap();
        let exposure = last
            .split(": ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        let (whole, tenth) = exposure.unwrap().split_once('.').unwrap();
        let tenths: u32 = whole.parse::<u32>().unwrap() * 10 + tenth.parse::<u32>().unwrap();
        assert!(tenths <= EXPOSURE_MAX_TENTHS, "{unit}: {said}");
    }
}

#[test]
fn units_say_nothing_that_systemd_does_not_know() {
    for unit in [HOST, GATEWAY] {
        let output = std::process::Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .arg(file(unit))
            .output()
            .unwrap();
        // It succeeds whatever it finds; other units of this machine are none of ours. That the program
        // is not installed here is no fault of the unit.
        let said = String::from_utf8(output.stderr).unwrap();
        let ours: Vec<_> = said
            .lines()
            .filter(|line| line.contains("tidegated") && !line.contains("is not executable"))
            .collect();
        assert!(ours.is_empty(), "{ours:#?}");
    }
}

#[test]
fn units_and_defaults_of_the_programs_agree() {
    let below = |folder: &str, names: &str| -> Vec<PathBuf> {
        names
            .split(' ')
            .map(|name| Path::new(folder).join(name))
            .collect()
    };
    let settings = Settings::parse("", Path::new("/etc/tidegate")).unwrap();
    let state = below("/var/lib", &values(HOST, "StateDirectory")[0]);
    assert!(state.contains(&settings.service.state_dir), "{state:?}");
    assert!(state.contains(&link::DEFAULT_IDENTITY.into()), "{state:?}");
    let runtime = below("/run", &values(HOST, "RuntimeDirectory")[0]);
    assert_eq!(settings.service.socket.parent(), Some(runtime[0].as_path()));
    assert_eq!(values(HOST, "Group"), [settings.service.socket_group]);
    let scratch = settings.service.scratch.folder;
    assert_eq!(
        values(HOST, "ReadWritePaths"),
        [format!("-{}", scratch.display())]
    );
    let made = format!("d {} 0711 tidegate tidegate\n", scratch.display());
    assert!(read("tmpfiles.d/tidegate.conf").contains(&made));

    let least =
        "fleet = '/f'\nauthority_key = '/k'\n[repository.main]\nlocation = '/r'\nkey = '/m'";
    let config = site::Site::new();
    std::fs::write(config.path("gateway.toml"), least).unwrap();
    let config = gateway::GatewayConfig::read(&config.path("gateway.toml")).unwrap();
    let cache = below("/var/cache", &values(GATEWAY, "CacheDirectory")[0]);
    assert_eq!(cache, [config.repositories[0].cache_dir.clone()]);

    for (unit, file) in [
        (HOST, host::config::DEFAULT_FILE),
        (GATEWAY, gateway::config::DEFAULT_FILE),
    ] {
        assert_eq!(values(unit, "ConditionPathExists"), [file]);
        // Both names of a user are made by the package.
        let users = read("sysusers.d/tidegate.conf");
        let user = format!("u {} ", values(unit, "User")[0]);
        assert!(users.contains(&user), "{users}");
        // The examples' credentials are those that the unit hands over.
        let example = read(if unit == HOST {
            "host.toml"
        } else {
            "gateway.toml"
        });
        let asked: BTreeSet<_> = example
            .split('"')
            .filter_map(|text| text.strip_prefix("credential:"))
            .map(str::to_owned)
            .collect();
        let given: BTreeSet<_> = values(unit, "LoadCredential")
            .iter()
            .map(|value| value.split(':').next().unwrap().to_owned())
            .collect();
        assert_eq!(asked, given, "{unit}");
    }
    let buffers = read("sysctl.d/50-tidegate.conf");
    for key in ["net.core.rmem_max", "net.core.wmem_max"] {
        let line = format!("{key} = {}\n", link::transport::SOCKET_BUFFER_BYTES);
        assert!(buffers.contains(&line), "{buffers}");
    }
}

#[test]
fn alerts_ask_for_metrics_that_there_are() {
    let known: BTreeSet<_> = metrics::ALL.iter().map(|metric| metric.name).collect();
    let text = read("alerts.yml");
    let mut asked = 0;
    for expression in text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "))
    {
        let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let names: Vec<_> = words.filter(|word| word.starts_with("tidegate_")).collect();
        assert!(!names.is_empty(), "{expression}");
        for name in names {
            // A histogram is three series.
            let whole = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix))
                .unwrap_or(name);
            assert!(
                known.contains(name) || known.contains(whole),
                "{name}: {expression}"
            );
        }
        asked += 1;
    }
    assert_eq!(asked, text.matches("- alert: ").count());
}
