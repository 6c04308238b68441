//! A gateway that is killed in any step of a run: before and after each thing that it asks of the store.

use crate::everyday::{assert_clean, assert_restores, disk};
use crate::lab::{copy, request, try_back_up};
use crate::process::Process;
use crate::site::{NAME, Site};
use futures::{StreamExt, stream};
use rustix::process::{Signal, kill_process};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tidegate_agent::link::client::{LinkSettings, join};
use tidegate_agent::repository::Repository;
use tidegate_agent::store::{Store, StoreSettings};
use tidegate_agent::testing::{FaultyProxy, HttpFault, S3Server};
use tidegate_protocol::rights::Right;

/// Runs at once; most of the time they wait for a silent gateway to be given up.
const AT_ONCE: usize = 8;

/// A second backup of a machine by way of two gateways. At their request of that number to the store
/// the one that makes it is killed. Returns how many requests there were.
async fn run(server: &S3Server, kill: Option<(usize, HttpFault)>) -> usize {
    let name = match &kill {
        None => "whole".to_owned(),
        Some((at, fault)) => format!("{at}-{}", *fault == HttpFault::ResetAfter),
    };
    let folder = tempfile::tempdir().unwrap();
    let site = Site::over(folder, server.location(&name), server.open(&name)).await;
    let proxies = [0, 1].map(|_| FaultyProxy::before(server.port()));
    let mut gateways = Vec::new();
    for (number, proxy) in proxies.iter().enumerate() {
        let environment = server.environment().with("AWS_ENDPOINT_URL", proxy.url());
        let gateway = Process::start(&site, &format!("gw{number}"), &environment).await;
        gateways.push(gateway);
    }
    let addresses: Vec<_> = gateways.iter().map(|g| g.address.to_string()).collect();
    let token = site.invite("hv1", &[Right::Backup]).await;
    let identity = site.folder.path().join("hv1");
    join(&identity, token, &addresses).await.unwrap();
    let settings = StoreSettings {
        link: LinkSettings {
            identity,
            ..LinkSettings::default()
        },
        ..StoreSettings::default()
    };
    let store = Store::open(&format!("quic://{}/{NAME}", addresses.join(",")), &settings).unwrap();
    let cache = site.folder.path().join("cache-hv1");
    let keys = copy(&site.keys.host);
    let repository = Arc::new(Repository::open(store, keys, &cache).await.unwrap());
    let first = request("web", Arc::new(disk(4, 1)), Some(1 << 20));
    try_back_up(&repository, first).await.unwrap();

    let asked = Arc::new(AtomicUsize::new(0));
    for (gateway, proxy) in gateways.iter().zip(&proxies) {
        let (pid, asked, kill) = (gateway.pid(), Arc::clone(&asked), kill.clone());
        proxy.script(move |_| {
            let number = asked.fetch_add(1, Ordering::Relaxed);
            let (_, fault) = kill.clone().filter(|(at, _)| *at == number)?;
            kill_process(pid, Signal::KILL).unwrap();
            Some(fault)
        });
    }
    let second = disk(8, 2);
    let again = request("web", Arc::new(second.clone()), Some(1 << 20));
    let summary = try_back_up(&repository, again).await;
    let asked = asked.load(Ordering::Relaxed);
    let summary = summary.unwrap_or_else(|error| panic!("{name} of {asked}: {error:?}"));
    assert_eq!(summary.new_bytes, second.data_bytes(), "{name}");
    let beside = site.beside().await;
    assert_restores(&beside, &second).await;
    assert_clean(&beside).await;
    assert_eq!(beside.points(None).unwrap().len(), 2, "{name}");
    asked
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_killed_at_any_step_costs_nothing_that_was_acknowledged() {
    let server = S3Server::start();
    let steps = run(&server, None).await;
    assert!(steps >= 10, "{steps} requests");
    let kills = (0..steps).flat_map(|at| {
        [HttpFault::ResetBefore, HttpFault::ResetAfter].map(|fault| Some((at, fault)))
    });
    let runs = stream::iter(kills).map(|kill| run(&server, kill));
    runs.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await;
    println!("a gateway was killed before and after each of {steps} requests to the store");
}
