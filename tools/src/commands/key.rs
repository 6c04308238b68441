//! `tidegate key`: more keys, fewer keys, and keys in other shapes.

use crate::args::{Global, Key, KeyAdd, KeyExport, KeyList, KeyOptions, KeyRecipient, KeyRemove};
use crate::context::{Context, blocking};
use crate::exit::Outcome;
use crate::settings::Settings;
use crate::{escrow, keys, text};
use serde_json::json;
use tidegate_agent::clock;
use tidegate_agent::repository::{KeyInfo, Repository, write_key_file};
use tidegate_agent::{Error, Kind, Result};
use tidegate_protocol::keys::{SealPrivateKey, Secret};
use tidegate_protocol::slot::{Argon2Cost, NewWrapping, WRAPPING_FILE_BYTES_MIN};

pub(super) async fn run(global: &Global, args: Key, context: &Context) -> Result<Outcome> {
    match args {
        Key::Add(args) => add(global, args, context).await?,
        Key::List(args) => list(global, args, context).await?,
        Key::Remove(args) => remove(global, args, context).await?,
        Key::Export(args) => export(global, args, context).await?,
        Key::Recipient(args) => recipient(&args, context)?,
    }
    Ok(Outcome::Done)
}

async fn add(global: &Global, args: KeyAdd, context: &Context) -> Result<()> {
    let in_use = KeyOptions {
        key: args.key.clone(),
        ..KeyOptions::default()
    };
    let settings = Settings::load(global, &args.repository, &in_use)?;
    let repository = context.open(&settings).await?;
    let info = if let Some(path) = &args.out {
        repository
            .key_add_file(args.level, &args.label, |issued| {
                write_key_file(path, issued)
            })
            .await?
    } else {
        add_slot(&repository, &args).await?
    };
    context.output.result(&info, || {
        let place = match (&args.out, &info.slot) {
            (Some(path), _) => format!("in {}", path.display()),
            (None, Some(slot)) => format!("in slot {}, opened by {}", slot.short(), info.wrapping),
            (None, None) => "issued".to_owned(),
        };
        format!("{} key {} {place}\n", info.level, info.key.short())
    })
}

async fn add_slot(repository: &Repository, args: &KeyAdd) -> Result<KeyInfo> {
    if let Some(public) = args.recipient {
        let with = NewWrapping::Recipient(public);
        return repository
            .key_add_slot(args.level, &args.label, &with)
            .await;
    }
    if let Some(path) = args.wrapping_file.clone() {
        let name = path.display().to_string();
        let content = blocking(move || keys::read_wrapping_file(&path)).await?;
        if content.len() < WRAPPING_FILE_BYTES_MIN {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "{name} is too short to be a key: expected at least \
                     {WRAPPING_FILE_BYTES_MIN} random bytes, found {}",
                    content.len()
                ),
            )
            .advise("make one with: head -c 32 /dev/urandom > FILE"));
        }
        let with = NewWrapping::File(&content);
        return repository
            .key_add_slot(args.level, &args.label, &with)
            .await;
    }
    let file = args.passphrase_file.clone();
    let text = blocking(move || match &file {
        Some(path) => {
            let text = keys::read_passphrase(path)?;
            keys::check_strength(&text)?;
            Ok(text)
        }
        None => keys::ask_twice(),
    })
    .await?;
    let with = NewWrapping::Passphrase(&text, Argon2Cost::RECOMMENDED);
    repository
        .key_add_slot(args.level, &args.label, &with)
        .await
}

async fn list(global: &Global, args: KeyList, context: &Context) -> Result<()> {
    let settings = Settings::load(global, &args.access.repository, &args.access.key)?;
    let repository = context.open(&settings).await?;
    let keys = context.or_stop(repository.key_list()).await?;
    let in_use = repository.keys().identity().certificate.public.id();
    context.output.result(&keys, || {
        text::table(
            ["key", "level", "opened by", "slot", "made", "label", ""],
            keys.iter().map(|info| {
                let state = if info.revoked {
                    "revoked"
                } else if info.key == in_use {
                    "in use"
                } else {
                    ""
                };
                [
                    info.key.short(),
                    info.level.to_string(),
                    info.wrapping.to_owned(),
                    info.slot.map_or_else(String::new, |slot| slot.short()),
                    text::local_time(info.created_unix_ns),
                    info.label.clone(),
                    state.to_owned(),
                ]
            }),
        )
    })
}

async fn remove(global: &Global, args: KeyRemove, context: &Context) -> Result<()> {
    let settings = Settings::load(global, &args.access.repository, &args.access.key)?;
    let repository = context.open(&settings).await?;
    let info = repository.key_remove(&args.which).await?;
    context.output.result(&info, || match &info.slot {
        Some(slot) => format!(
            "removed slot {} with {} key {}\n",
            slot.short(),
            info.level,
            info.key.short()
        ),
        None => format!("revoked {} key {}\n", info.level, info.key.short()),
    })
}

async fn export(global: &Global, args: KeyExport, context: &Context) -> Result<()> {
    let settings = Settings::load(global, &args.access.repository, &args.access.key)?;
    let repository = context.open(&settings).await?;
    let in_use = repository.keys();
    let (level, key) = match args.level {
        Some(level) if level != in_use.level() => {
            let label = args.out.file_stem().unwrap_or_default().to_string_lossy();
            let info = repository
                .key_add_file(level, &label, |issued| write_key_file(&args.out, issued))
                .await?;
            (level, info.key)
        }
        _ => {
            write_key_file(&args.out, in_use)?;
            (in_use.level(), in_use.identity().certificate.public.id())
        }
    };
    let value = json!({
        "level": level.as_str(),
        "key": key.to_string(),
        "file": args.out,
    });
    context.output.result(&value, || {
        format!("{level} key {} is in {}\n", key.short(), args.out.display())
    })
}

fn recipient(args: &KeyRecipient, context: &Context) -> Result<()> {
    let material = Secret(clock::random()?);
    let public = hex::encode(SealPrivateKey::derive(&material).public().0);
    keys::write_secret(&args.out, escrow::encode(&material).as_bytes())?;
    let value = json!({ "public": public, "file": args.out });
    context.output.result(&value, || format!("{public}\n"))?;
    context.output.note(&format!(
        "{} opens what is wrapped for this public key: put it into a safe",
        args.out.display()
    ));
    Ok(())
}
