//! `tidegate host`: this machine as a host of a fleet of gateways.

use crate::args::{Global, Host, HostJoin, HostShow};
use crate::context::{Context, blocking};
use crate::exit::Outcome;
use crate::settings::identity_folder;
use crate::{keys, text};
use serde_json::{Value, json};
use std::io::Read;
use std::path::Path;
use tidegate_agent::link::client::join;
use tidegate_agent::link::identity::Identity;
use tidegate_agent::{Error, Kind, Result};
use tidegate_protocol::enrolment::Token;
use zeroize::Zeroizing;

/// Longer than any token.
const TOKEN_BYTES_MAX: u64 = 16 << 10;

pub(super) async fn run(global: &Global, args: Host, context: &Context) -> Result<Outcome> {
    match args {
        Host::Join(args) => join_fleet(global, args, context).await?,
        Host::Show(args) => show(global, args, context).await?,
    }
    Ok(Outcome::Done)
}

async fn join_fleet(global: &Global, args: HostJoin, context: &Context) -> Result<()> {
    let folder = identity_folder(global, args.identity)?;
    let token = blocking(move || read_token(&args.token_file)).await?;
    let joining = join(&folder, token, &args.gateways);
    let (identity, host) = context.or_stop(joining).await?;
    let mut value = described(&identity, &folder);
    value["host"] = host.clone().into();
    context.output.result(&value, || {
        format!(
            "joined as {host}\n{}\n  use it with: tidegate --repo quic://{}/NAME …\n",
            words(&identity, &folder),
            identity.gateways().join(","),
        )
    })
}

async fn show(global: &Global, args: HostShow, context: &Context) -> Result<()> {
    let folder = identity_folder(global, args.identity)?;
    let path = folder.clone();
    let identity = blocking(move || Identity::open(&path)).await?;
    context
        .output
        .result(&described(&identity, &folder), || words(&identity, &folder))
}

fn described(identity: &Identity, folder: &Path) -> Value {
    json!({
        "enrolment": identity.enrolment().to_string(),
        "authority": identity.authority().to_string(),
        "gateways": identity.gateways(),
        "expires_unix_ns": identity.certificate().not_after_unix_ns,
        "renewed_from_unix_ns": identity.renew_from_unix_ns(),
        "identity": folder,
    })
}

fn words(identity: &Identity, folder: &Path) -> String {
    format!(
        "  enrolment  {}\n  gateways   {}\n  identity   {}\n  renewed    by itself, from {} on; it ends {}\n",
        identity.enrolment(),
        identity.gateways().join(", "),
        folder.display(),
        text::local_time(identity.renew_from_unix_ns()),
        text::local_time(identity.certificate().not_after_unix_ns),
    )
}

fn read_token(path: &Path) -> Result<Token> {
    let line = match path.as_os_str() == "-" {
        false => keys::read_text(path)?,
        true => {
            let mut line = Zeroizing::new(String::new());
            std::io::stdin()
                .take(TOKEN_BYTES_MAX)
                .read_to_string(&mut line)
                .map_err(|error| Error::io("cannot read the token from standard input", error))?;
            line
        }
    };
    Token::decode(&line).map_err(|cause| {
        Error::new(Kind::Config, "that is no token")
            .caused_by(cause)
            .advise("give the whole line that `tidegate gateway invite` printed")
    })
}
