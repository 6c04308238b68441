//! `tidegate soak`: the engine does what the model says, for some fixed seeds. Any other seed may be
//! tried by hand, for as long as one likes.

mod site;

use site::Site;

#[test]
fn the_engine_does_what_the_model_says() {
    let site = Site::new();
    let told = site.run(&["soak", "--seed", "1", "--steps", "2000", "--json"]);
    let told = told.succeeds().json();
    assert_eq!(told["steps"], 2000);
    assert_eq!(told["failure"], serde_json::Value::Null);
    for (what, at_least) in [
        ("backups", 150),
        ("restores", 500),
        ("interrupted", 30),
        ("faults", 50),
    ] {
        assert!(told[what].as_u64().unwrap() >= at_least, "{what}: {told}");
    }
}

#[test]
fn repositories_in_a_folder_stay_there() {
    let site = Site::new();
    let args = [
        "soak",
        "--seed",
        "9000",
        "--steps",
        "120",
        "--history",
        "60",
        "--repo",
        "place",
    ];
    site.run(&args).succeeds();
    for seed in [9000, 9001] {
        let repository = site.path(&format!("place/soak-{seed}"));
        assert!(
            repository.join("repository").exists(),
            "{}",
            repository.display()
        );
    }
    // What is there already is nobody's to play with.
    let again = site.run(&args);
    assert_eq!(again.code, 9, "{}", again.stdout);
    assert!(
        again.stderr.contains("there is a repository already"),
        "{}",
        again.stderr
    );
}
