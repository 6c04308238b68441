//! Options, settings and exit codes, as far as they need no repository.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod site;

use site::{Run, Site};

#[test]
fn help_names_every_command_variable_and_exit_code() {
    let help = Site::new().run(&["--help"]).succeeds().stdout;
    for word in [
        "init",
        "backup",
        "points",
        "expire",
        "diff",
        "restore",
        "verify",
        "key",
        "repo",
        "demo",
        "completions",
        "man",
        "TIDEGATE_REPO",
        "TIDEGATE_KEY",
        "130",
    ] {
        assert!(
            help.contains(word),
            "the help does not name {word}:\n{help}"
        );
    }
    let key = Site::new().run(&["key", "--help"]).succeeds().stdout;
    for word in ["add", "list", "remove", "export", "recipient"] {
        assert!(key.contains(word), "{key}");
    }
    let version = Site::new().run(&["--version"]).succeeds().stdout;
    assert_eq!(version, format!("tidegate {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_arguments_end_with_2_and_say_what_was_expected() {
    let site = Site::new();
    for (args, word) in [
        (&["restor"][..], "restore"),
        (&["restore", "web01", "--to", "x"], "web01@latest"),
        (&["verify"], "--all"),
        (&["verify", "web01", "--all"], "--all"),
        (&["verify", "--all", "--sample", "0%"], "5%"),
        (&["backup"], "IMAGE"),
        (&["backup", "x", "--format", "vdi"], "qcow2"),
        (&["backup", "x", "--machine", "a/b"], "a/b"),
        (
            &["backup", "x", "--key", "a", "--passphrase-file", "b"],
            "--passphrase-file",
        ),
        (
            &[
                "restore",
                "a@latest",
                "--to",
                "x",
                "--in-place",
                "--overwrite",
            ],
            "--overwrite",
        ),
        (
            &["init", "--repo", "r", "--keys", "k", "--chunker", "rabin"],
            "block-aligned",
        ),
        (
            &["key", "add", "--level", "root", "--out", "x"],
            "maintenance",
        ),
        (&["key", "add", "--level", "host"], "--out"),
    ] {
        site.run(args).ends_with(2).says(&["error:", word]);
    }
    assert!(!site.path("r").exists());
}

#[test]
fn errors_are_json_where_json_was_asked_for() {
    let site = Site::new();
    let error = site
        .run(&["points", "--repo", "r", "--key", "none.key", "--json"])
        .ends_with(3)
        .json();
    assert_eq!(error["error"]["kind"], "missing");
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("none.key")
    );
    assert!(error["error"]["advice"].is_string());
    let usage = site.run(&["restore", "--json", "x"]).ends_with(2).json();
    assert_eq!(usage["error"]["kind"], "config");
}

#[test]
fn nothing_is_guessed_where_repository_or_key_is_not_named() {
    let site = Site::new();
    site.run(&["points"])
        .ends_with(2)
        .says(&["no repository is named", "TIDEGATE_REPO"]);
    site.run(&["points", "--repo", "repo"])
        .ends_with(2)
        .says(&["no key is named", "TIDEGATE_KEY"]);
    // Set to nothing is not set.
    let mut command = site.command();
    command.env("TIDEGATE_REPO", "");
    Run::of(&mut command, &["points"])
        .ends_with(2)
        .says(&["no repository is named"]);
}

/// The key that a command would use shows in its complaint that it is not there.
#[test]
fn options_outrank_the_environment_and_that_the_file() {
    let site = Site::new();
    std::fs::create_dir(site.path("etc")).unwrap();
    let file = site.path("etc/config.toml");
    std::fs::write(&file, "repo = 'r'\nkey = 'by-file.key'\n").unwrap();
    let run = |environment: &[(&str, &str)], args: &[&str]| {
        let mut command = site.command();
        command.env("TIDEGATE_CONFIG", &file);
        command.envs(environment.iter().copied());
        Run::of(&mut command, args).ends_with(3).stderr
    };
    let key = [("TIDEGATE_KEY", "by-environment.key")];
    // A path in the file starts at the file's folder, whatever the working folder.
    assert!(run(&[], &["points"]).contains("etc/by-file.key"));
    assert!(run(&key, &["points"]).contains("by-environment.key"));
    assert!(run(&key, &["points", "--key", "by-option.key"]).contains("by-option.key"));
    // Another sort of source outranks too.
    let passphrase = &["points", "--passphrase-file", "by-option.txt"];
    assert!(run(&key, passphrase).contains("by-option.txt"));

    let other = site.path("other.toml");
    std::fs::write(&other, "repo = 'r'\nkey = 'by-other-file.key'\n").unwrap();
    let named = &["points", "--config", "other.toml"];
    assert!(run(&[], named).contains("by-other-file.key"));
}

#[test]
fn the_users_configuration_file_is_found() {
    let site = Site::new();
    let folder = site.path("home/.config/tidegate");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(
        folder.join("config.toml"),
        "repo = 's3://b/p'\nkey = '~/my.key'\n",
    )
    .unwrap();
    let mut command = site.command();
    command.env_remove("TIDEGATE_CONFIG");
    Run::of(&mut command, &["points"])
        .ends_with(3)
        .says(&["home/my.key"]);
}

#[test]
fn a_configuration_file_that_is_not_understood_is_refused() {
    let site = Site::new();
    for (content, word) in [
        ("repositry = 'x'", "repositry"),
        ("[store]\nretries = 3", "retries"),
        ("workers = 0", "workers"),
        ("workers = 'many'", "workers"),
        ("compression_level = 40", "compression_level"),
        ("pack_mib = 4096", "pack_mib"),
        ("connections = 17", "1 to 16"),
        ("repo = ", "repo"),
    ] {
        std::fs::write(site.path("c.toml"), content).unwrap();
        site.run(&["points", "--config", "c.toml"])
            .ends_with(2)
            .says(&[word]);
    }
    site.run(&["points", "--config", "none.toml"])
        .ends_with(3)
        .says(&["none.toml"]);
}

#[test]
fn completions_and_man_pages_are_made() {
    let site = Site::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = site.run(&["completions", shell]).succeeds().stdout;
        assert!(script.contains("rebuild-cache"), "{shell}");
    }
    site.run(&["man", "man"]).succeeds();
    for page in ["tidegate.1", "tidegate-restore.1", "tidegate-key-add.1"] {
        let text = std::fs::read_to_string(site.path("man").join(page)).unwrap();
        assert!(text.contains(".TH"), "{page}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let site = Site::new();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["completions", "zsh"])
        .current_dir(site.path("home"))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_full_disk_below_standard_output_is_an_error() {
    let site = Site::new();
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["completions", "zsh"])
        .current_dir(site.path("home"))
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
}
