//! The gateway over a store that forgets packs: what the link costs where no store does.
//!
//! All else is the service's own: the connection, the rights, the room for bodies, the hash that a pack is
//! checked by. Not for anything but measuring: what it acknowledges is lost.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tidegate_agent::gateway::{self, Gateway, GatewayConfig};
use tidegate_agent::store::fault::{Fault, FaultStore, Operation};
use tidegate_agent::store::folder::Folder;
use tidegate_agent::store::{Store, StoreSettings};
use tokio_util::sync::CancellationToken;

#[derive(clap::Args)]
pub(crate) struct GatewayArguments {
    /// The gateway's configuration file; its repositories lie in folders
    #[arg(long)]
    config: PathBuf,
}

/// Serves until it is killed. Says where it listens as the service does.
pub(crate) fn serve(arguments: &GatewayArguments) -> Result<()> {
    tidegate_agent::allocator::give_back_large_buffers();
    let config = GatewayConfig::read(&arguments.config)?;
    // As the service does.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(gateway::runtime_threads())
        .enable_all()
        .build()?
        .block_on(async {
            let gateway = Gateway::start_over(config, None, forgetful).await?;
            let address = *gateway.addresses().first().context("it does not listen")?;
            eprintln!("the gateway listens address={address}");
            gateway.run(CancellationToken::new()).await;
            Ok(())
        })
}

fn forgetful(location: &str, settings: &StoreSettings) -> tidegate_agent::Result<Store> {
    let folder = Folder::open(Path::new(location))?;
    let faults = FaultStore::new(Arc::new(folder));
    faults.script(|call| {
        let is_pack = call.operation == Operation::Put && call.key.starts_with("packs/");
        is_pack.then_some(Fault::Forget)
    });
    let label = "a store that forgets packs";
    Ok(Store::from_object_store(
        Arc::new(faults),
        "",
        label,
        settings,
    ))
}
