//! Where the key in use comes from, and how secrets are read from files and from people.
//!
//! No secret is ever an argument: arguments stand in process lists and shell histories. Files that
//! others may read are used, with a warning.

use crate::context::blocking;
use crate::escrow;
use crate::settings::{KeySource, Settings};
use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tidegate_agent::durable;
use tidegate_agent::repository::{open_slot, read_key_file};
use tidegate_agent::store::Store;
use tidegate_agent::{Error, Kind, Result};
use tidegate_protocol::keys::{Keys, SealPrivateKey};
use tidegate_protocol::slot::Credential;
use zeroize::Zeroizing;

/// Longest passphrase, in bytes.
const PASSPHRASE_BYTES_MAX: u64 = 4096;
/// Shortest passphrase for a new slot, in characters: the store's owner may try for years.
const PASSPHRASE_CHARS_MIN: usize = 10;
/// Longest wrapping file, in bytes: all of it is the key.
const WRAPPING_FILE_BYTES_MAX: u64 = 1 << 20;
/// Longest secret text file, in bytes: a key in PEM, a token with all its gateways.
const TEXT_BYTES_MAX: u64 = 64 << 10;

/// Gets the key that the settings name; asks for a passphrase where they name none and there is
/// somebody to ask.
pub(crate) async fn load(store: &Store, settings: &Settings) -> Result<Keys> {
    let slot = settings.slot.as_deref();
    match settings.key.clone() {
        Some(KeySource::File(path)) => blocking(move || read_key_file(&path)).await,
        Some(KeySource::PassphraseFile(path)) => {
            let text = blocking(move || read_passphrase(&path)).await?;
            open_slot(store, &Credential::Passphrase(&text), slot).await
        }
        Some(KeySource::WrappingFile(path)) => {
            let content = blocking(move || read_wrapping_file(&path)).await?;
            open_slot(store, &Credential::File(&content), slot).await
        }
        Some(KeySource::EscrowKey(path)) => {
            let private = blocking(move || read_escrow_key(&path)).await?;
            open_slot(store, &Credential::Recipient(&private), slot).await
        }
        None if std::io::stdin().is_terminal() && std::io::stderr().is_terminal() => {
            let prompt = format!("Passphrase of a key slot of {}: ", store.label());
            let text = blocking(move || ask(&prompt)).await?;
            open_slot(store, &Credential::Passphrase(&text), slot).await
        }
        None => Err(Error::new(Kind::Config, "no key is named").advise(
            "give --key FILE or --passphrase-file FILE, set TIDEGATE_KEY or \
             TIDEGATE_PASSPHRASE_FILE, or write `key = \"…\"` into the configuration file",
        )),
    }
}

/// Reads a passphrase: the file's content without the line end.
pub(crate) fn read_passphrase(path: &Path) -> Result<Zeroizing<String>> {
    let bytes = read_secret(path, PASSPHRASE_BYTES_MAX)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| {
        Error::new(
            Kind::Config,
            format!("the passphrase in {} is not valid UTF-8", path.display()),
        )
    })?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() || text.contains('\n') {
        return Err(Error::new(
            Kind::Config,
            format!(
                "{} does not hold a passphrase: expected one line",
                path.display()
            ),
        ));
    }
    Ok(Zeroizing::new(text.to_owned()))
}

/// Asks for a new passphrase, twice.
pub(crate) fn ask_twice() -> Result<Zeroizing<String>> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::new(
            Kind::Config,
            "there is no terminal to ask for a passphrase on",
        )
        .advise("use --passphrase-file FILE"));
    }
    let first = ask("New passphrase: ")?;
    check_strength(&first)?;
    if *ask("The same once more: ")? != *first {
        return Err(Error::new(Kind::Config, "the two passphrases differ"));
    }
    Ok(first)
}

/// Refuses passphrases that are too short to protect anything.
pub(crate) fn check_strength(text: &str) -> Result<()> {
    if text.chars().count() < PASSPHRASE_CHARS_MIN {
        return Err(Error::new(
            Kind::Config,
            format!(
                "the passphrase is too short: expected at least {PASSPHRASE_CHARS_MIN} characters"
            ),
        )
        .advise("use several words, or a key file instead"));
    }
    Ok(())
}

/// Reads a file whose content is a key.
pub(crate) fn read_wrapping_file(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    read_secret(path, WRAPPING_FILE_BYTES_MAX)
}

fn read_escrow_key(path: &Path) -> Result<SealPrivateKey> {
    let bytes = read_secret(path, PASSPHRASE_BYTES_MAX)?;
    let wrong = |detail| {
        Error::new(
            Kind::Corrupt,
            format!(
                "{} is not a whole escrow key file: {detail}",
                path.display()
            ),
        )
        .advise("use the file that `tidegate key recipient` wrote, or a copy of it")
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong("it is not text"))?;
    escrow::decode(text).map_err(wrong)
}

/// Reads a small text file that is a secret.
pub(crate) fn read_text(path: &Path) -> Result<Zeroizing<String>> {
    let bytes = read_secret(path, TEXT_BYTES_MAX)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| {
        Error::new(
            Kind::Corrupt,
            format!("{} is not text: expected PEM", path.display()),
        )
    })?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Writes a new file that only its owner may read, and makes it durable.
pub(crate) fn write_secret(path: &Path, bytes: &[u8]) -> Result<()> {
    durable::create_file(path, 0o600, |file| file.write_all(bytes)).map_err(|error| {
        match error.kind() {
            std::io::ErrorKind::AlreadyExists => exists(path),
            _ => Error::io(format!("cannot write {}", path.display()), error),
        }
    })
}

/// That a file which shall be new is there.
pub(crate) fn exists(path: &Path) -> Error {
    Error::new(Kind::Conflict, format!("{} exists", path.display())).advise("name another file")
}

fn ask(prompt: &str) -> Result<Zeroizing<String>> {
    rpassword::prompt_password(prompt)
        .map(Zeroizing::new)
        .map_err(|error| Error::io("cannot ask for a passphrase on the terminal", error))
}

fn read_secret(path: &Path, bytes_max: u64) -> Result<Zeroizing<Vec<u8>>> {
    let cannot = |error| Error::io(format!("cannot read {}", path.display()), error);
    warn_if_shared(path);
    let file = File::open(path).map_err(cannot)?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot)?;
    if bytes.len() as u64 > bytes_max {
        return Err(Error::new(
            Kind::Config,
            format!(
                "{} is too long for a secret: expected at most {bytes_max} bytes",
                path.display()
            ),
        ));
    }
    Ok(bytes)
}

fn warn_if_shared(path: &Path) {
    if std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.mode() & 0o077 != 0) {
        tracing::warn!(
            "{} holds a secret and may be read by others: chmod 600",
            path.display()
        );
    }
}
