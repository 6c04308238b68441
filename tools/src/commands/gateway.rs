//! `tidegate gateway`: a fleet of gateways and the hosts that may connect to it.
//!
//! Works on the fleet's place with the store's own credentials; no gateway has to run. The invariant:
//! no fleet without its authority's key on disk, and no key left behind of which it is known that it
//! is nobody's.

use crate::args::{
    FleetOptions, Gateway, GatewayInit, GatewayInvite, GatewayList, GatewayRevoke, GatewayStatus,
    Global, KeyOptions, RepositoryOptions,
};
use crate::context::{Context, blocking};
use crate::exit::Outcome;
use crate::settings::{Settings, make_private_folder};
use crate::{keys, text};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tidegate_agent::clock;
use tidegate_agent::gateway::authority::{
    Authority, Damaged, Enrolment, EnrolmentState, Fleet, Listing, Named, NewInvite,
};
use tidegate_agent::link::identity::PrivateKey;
use tidegate_agent::store::Store;
use tidegate_agent::{Error, Kind, Result};
use tidegate_protocol::enrolment::Grant;

/// What the file with the authority's key is called.
const KEY_FILE: &str = "authority.key";

pub(super) async fn run(global: &Global, args: Gateway, context: &Context) -> Result<Outcome> {
    match args {
        Gateway::Init(args) => init(global, args, context).await?,
        Gateway::Invite(args) => invite(global, args, context).await?,
        Gateway::List(args) => return list(global, args, context).await,
        Gateway::Revoke(args) => revoke(global, args, context).await?,
        Gateway::Status(args) => status(global, &args, context).await?,
    }
    Ok(Outcome::Done)
}

async fn status(global: &Global, args: &GatewayStatus, context: &Context) -> Result<()> {
    let settings = Settings::load(global, &args.repository, &KeyOptions::default())?;
    let store = context.store(&settings)?;
    let status = context.or_stop(store.gateway_status()).await?;
    let value = json!({
        "program": status.program,
        "up_seconds": status.up_seconds,
        "hosts": status.connections,
        "requests": status.requests,
        "head": status.head,
        "store_answers": status.store_answers,
    });
    context.output.result(&value, || {
        format!(
            "{}, up for {}: {}, {} under way; its log is at record {}, and its store {}\n",
            status.program,
            text::duration(Duration::from_secs(status.up_seconds)),
            text::count(status.connections.into(), "host"),
            text::count(status.requests.into(), "request"),
            status.head,
            match status.store_answers {
                true => "answers",
                false => "does not answer",
            },
        )
    })
}

async fn init(global: &Global, args: GatewayInit, context: &Context) -> Result<()> {
    let store = place(global, &args.fleet)?;
    let path = args.keys.join(KEY_FILE);
    let made = match path.symlink_metadata() {
        Ok(_) => finish(&store, &path).await?,
        Err(_) => begin(&store, &args.keys, &path).await?,
    };
    let value = json!({
        "fleet": store.label(),
        "authority": made.fingerprint().to_string(),
        "key": path,
    });
    context.output.result(&value, || {
        format!(
            "made a fleet in {}\n\
             \n  {}  for its gateways, and for nobody else; keep a copy:\
             \n  without it no host can join, and those that have joined lose their access within a month\n",
            store.label(),
            path.display(),
        )
    })
}

/// Makes a fleet with a fresh key, which is durable before the fleet is there.
async fn begin(store: &Store, folder: &Path, path: &Path) -> Result<Fleet> {
    match Fleet::open(store.clone()).await {
        Ok(_) => {
            let text = format!("{}: there is a fleet already", store.label());
            return Err(Error::new(Kind::Conflict, text)
                .advise("use it with its own authority.key, or name another place"));
        }
        Err(error) if error.kind() == Kind::Missing => {}
        Err(error) => return Err(error),
    }
    let key = Authority::new_key()?;
    make_private_folder(folder)?;
    keys::write_secret(path, key.to_pem().as_bytes())?;
    let error = match Authority::create(key, store.clone(), clock::now_unix_ns()).await {
        Ok(authority) => return Ok(authority.fleet().clone()),
        Err(error) => error,
    };
    // Answers may have been lost, so what counts is what is there now.
    let is_nobodys = match Fleet::open(store.clone()).await {
        Ok(_) => error.kind() == Kind::Conflict,
        Err(found) => found.kind() == Kind::Missing,
    };
    if !is_nobodys {
        return Err(error.advise(format!(
            "the fleet may have been made all the same, so {} was kept: run the same command again",
            path.display()
        )));
    }
    if let Err(cause) = std::fs::remove_file(path) {
        tracing::warn!(
            "cannot remove {}, which opens nothing: {cause}",
            path.display()
        );
    }
    Err(error)
}

/// Goes on with a key that is there: it stems from an init that was interrupted, or that was not.
async fn finish(store: &Store, path: &Path) -> Result<Fleet> {
    let key = read_key(path.to_owned()).await?;
    match Authority::create(key, store.clone(), clock::now_unix_ns()).await {
        Ok(authority) => Ok(authority.fleet().clone()),
        Err(error) if error.kind() == Kind::Conflict => {
            let text = format!("{} is the key of another fleet", path.display());
            Err(Error::new(Kind::Conflict, text)
                .caused_by(error)
                .advise("name another folder with --keys"))
        }
        Err(error) => Err(error),
    }
}

async fn read_key(path: PathBuf) -> Result<PrivateKey> {
    blocking(move || {
        let pem = keys::read_text(&path)?;
        PrivateKey::from_pem(&path.display().to_string(), &pem)
    })
    .await
}

async fn invite(global: &Global, args: GatewayInvite, context: &Context) -> Result<()> {
    if let Some(path) = args.out.as_ref().filter(|path| path.exists()) {
        return Err(keys::exists(path));
    }
    let fleet = open(global, &args.fleet, context).await?;
    let now = clock::now_unix_ns();
    let lasts = u64::try_from(args.expires.as_nanos()).unwrap_or(u64::MAX);
    let grants: Vec<Grant> = args
        .repositories
        .into_iter()
        .map(|written| Grant {
            repository: written.repository,
            rights: written.rights.unwrap_or(args.rights),
        })
        .collect();
    let expires_unix_ns = now.saturating_add(lasts);
    let new = NewInvite {
        host: args.host.clone(),
        grants: grants.clone(),
        expires_unix_ns,
        gateways: args.gateways,
    };
    let token = fleet.invite(new, now).await?;
    let line = token
        .encode()
        .map_err(|cause| Error::new(Kind::Bug, "cannot write the token").caused_by(cause))?;
    let mut value = json!({
        "enrolment": token.enrolment.to_string(),
        "host": args.host,
        "grants": grants_json(&grants),
        "expires": text::utc_time(expires_unix_ns),
        "gateways": token.gateways,
    });
    let until = text::local_time(expires_unix_ns);
    if let Some(path) = &args.out {
        keys::write_secret(path, format!("{}\n", *line).as_bytes())?;
        value["file"] = json!(path);
        context.output.result(&value, || {
            format!(
                "the token for {} is in {}; it can be used until {until}\n",
                args.host,
                path.display()
            )
        })
    } else {
        value["token"] = json!(*line);
        context.output.note(&format!(
            "whoever has this token can join as {} until {until}, once; there, put it into a file \
             and run: tidegate host join --token-file FILE",
            args.host
        ));
        context.output.result(&value, || format!("{}\n", *line))
    }
}

async fn list(global: &Global, args: GatewayList, context: &Context) -> Result<Outcome> {
    let fleet = open(global, &args.fleet, context).await?;
    let Listing {
        enrolments: all,
        damaged,
    } = context.or_stop(fleet.list(clock::now_unix_ns())).await?;
    let value = json!({
        "enrolments": all.iter().map(enrolment_json).collect::<Vec<_>>(),
        "damaged": damaged.iter().map(damaged_json).collect::<Vec<_>>(),
    });
    context.output.result(&value, || {
        text::table(
            ["host", "state", "since", "rights", "enrolment"],
            all.iter().map(|one| {
                [
                    one.invite.host.clone(),
                    state(one),
                    text::local_time(one.joined_unix_ns.unwrap_or(one.invite.created_unix_ns)),
                    grants_text(&one.invite.grants),
                    one.invite.enrolment.to_string(),
                ]
            }),
        )
    })?;
    for one in &damaged {
        let id = one.enrolment;
        context.output.warn(&format!(
            "{}: bring it back from a copy or the bucket's versions, or revoke {id}",
            one.error.chain()
        ));
    }
    Ok(match damaged.is_empty() {
        true => Outcome::Done,
        false => Outcome::Damaged,
    })
}

async fn revoke(global: &Global, args: GatewayRevoke, context: &Context) -> Result<()> {
    let fleet = open(global, &args.fleet, context).await?;
    let revoked = fleet.revoke(&args.which, clock::now_unix_ns()).await?;
    let object = |one: &Named| json!({ "enrolment": one.enrolment.to_string(), "host": one.host });
    let value: Vec<Value> = revoked.iter().map(object).collect();
    context.output.result(&value, || {
        let line = |one: &Named| {
            let host = one.host.as_deref().unwrap_or("a host that cannot be read");
            format!("revoked enrolment {} of {host}\n", one.enrolment)
        };
        revoked.iter().map(line).collect()
    })
}

fn place(global: &Global, fleet: &FleetOptions) -> Result<Store> {
    let repository = RepositoryOptions::default();
    let settings = Settings::load(global, &repository, &KeyOptions::default())?;
    Store::open(&fleet.fleet, &settings.store)
}

async fn open(global: &Global, fleet: &FleetOptions, context: &Context) -> Result<Fleet> {
    let store = place(global, fleet)?;
    context.or_stop(Fleet::open(store)).await
}

fn state(one: &Enrolment) -> String {
    match one.state {
        EnrolmentState::Invited => {
            format!(
                "invited until {}",
                text::local_time(one.invite.expires_unix_ns)
            )
        }
        state => state.as_str().to_owned(),
    }
}

fn grants_text(grants: &[Grant]) -> String {
    let texts: Vec<_> = grants
        .iter()
        .map(|grant| format!("{}:{}", grant.repository, grant.rights))
        .collect();
    texts.join(" ")
}

fn grants_json(grants: &[Grant]) -> Value {
    let object = |grant: &Grant| {
        let rights: Vec<_> = grant.rights.iter().map(|right| right.as_str()).collect();
        json!({ "repository": grant.repository, "rights": rights })
    };
    grants.iter().map(object).collect()
}

fn damaged_json(one: &Damaged) -> Value {
    json!({ "enrolment": one.enrolment.to_string(), "error": one.error.chain() })
}

fn enrolment_json(one: &Enrolment) -> Value {
    let invite = &one.invite;
    json!({
        "enrolment": invite.enrolment.to_string(),
        "host": invite.host,
        "state": one.state.as_str(),
        "grants": grants_json(&invite.grants),
        "invited": text::utc_time(invite.created_unix_ns),
        "expires": text::utc_time(invite.expires_unix_ns),
        "joined": one.joined_unix_ns.and_then(text::utc_time),
    })
}
