//! `tidegate machines`: what there is on this host, and how each is protected.

use crate::args::Machines;
use crate::context::{Context, blocking};
use crate::exit::Outcome;
use crate::text;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use tidegate_agent::Result;
use tidegate_agent::host::config::{DEFAULT_FILE, Settings};
use tidegate_agent::host::inventory::{self, Listed};

pub(super) async fn run(args: Machines, context: &Context) -> Result<Outcome> {
    let file = args.host_config.clone();
    let settings = blocking(move || match file {
        Some(file) => Settings::load(&file),
        // A host that protects nothing yet has no such file.
        None if !Path::new(DEFAULT_FILE).exists() => Settings::parse("", Path::new("/")),
        None => Settings::load(Path::new(DEFAULT_FILE)),
    })
    .await?;
    let has_machines = !settings.machines.is_empty() || !settings.patterns.is_empty();
    let connects = match args.connect {
        Some(uri) => vec![Some(uri)],
        None if has_machines => Vec::new(),
        None => vec![None],
    };
    let listing = inventory::list(Arc::new(settings), &connects);
    let (machines, remarks) = context.or_stop(listing).await?;
    for remark in &remarks {
        context.output.warn(remark);
    }
    let value = json!({ "machines": machines, "remarks": remarks });
    context.output.result(&value, || describe(&machines))?;
    Ok(Outcome::Done)
}

fn describe(machines: &[Listed]) -> String {
    if machines.is_empty() {
        return "there are no machines\n".to_owned();
    }
    let rows = machines.iter().map(|machine| {
        let protection = machine.protection.as_ref();
        [
            machine.machine.clone(),
            match machine.is_running {
                None => "–",
                Some(true) => "running",
                Some(false) => "off",
            }
            .to_owned(),
            protection.map_or_else(|| "NOT PROTECTED".to_owned(), |it| it.policy.clone()),
            protection.map_or_else(|| "–".to_owned(), |it| it.group.clone()),
            protection.map_or_else(|| "–".to_owned(), |it| it.repository.clone()),
            disks(machine),
            machine.tags.join(", "),
        ]
    });
    let header = [
        "machine",
        "state",
        "policy",
        "group",
        "repository",
        "disks",
        "tags",
    ];
    text::table(header, rows)
}

fn disks(machine: &Listed) -> String {
    if let Some(trouble) = &machine.trouble {
        return trouble.clone();
    }
    if machine.disks.is_empty() {
        return machine.origin.join(", ");
    }
    let mut told: Vec<String> = machine
        .disks
        .iter()
        .map(|disk| {
            let format = disk.format.iter().map(|format| format!(" {format}"));
            let how = match disk.is_trackable {
                true => "",
                false => ", read whole",
            };
            format!("{}{}{how}", disk.name, format.collect::<String>())
        })
        .collect();
    let left_out = machine.left_out.iter();
    told.extend(left_out.map(|it| format!("{} left out", it.name)));
    told.join("; ")
}
