//! Gateways and networks that go, and come back: nothing acknowledged is lost, and runs go on.

use crate::everyday::{assert_clean, assert_restores, disk};
use crate::lab::{back_up, request, try_back_up};
use crate::site::Site;
use std::sync::Arc;
use std::time::Duration;
use tidegate_protocol::rights::Right;

/// One of two gateways is stopped in the middle of a run: the run does not notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_leaves_hands_its_hosts_on() {
    let site = Site::new().await;
    let (one, two) = (site.gateway().await, site.gateway().await);
    let identity = site.host("hv1", &[Right::Backup], &one).await;
    let repository = site.open(&site.keys.host, &identity, &[&one, &two]).await;
    back_up(&repository, Arc::new(disk(8, 1))).await;
    let large = disk(384, 2);
    let run = tokio::spawn({
        let (repository, large) = (Arc::clone(&repository), Arc::new(large.clone()));
        async move { try_back_up(&repository, request("large", large, Some(4 << 20))).await }
    });
    // Each of the two in turn leaves; one of them is the one in use.
    tokio::time::sleep(Duration::from_millis(300)).await;
    one.stop().await;
    let one = site.gateway().await;
    let summary = run.await.unwrap().unwrap();
    assert_eq!(summary.new_bytes, large.data_bytes());
    let beside = site.beside().await;
    assert_restores(&beside, &large).await;
    assert_clean(&beside).await;
    drop(one);
}

/// A gateway is gone before a run begins: the other one serves it.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_gateway_is_passed_over() {
    let site = Site::new().await;
    let (one, two) = (site.gateway().await, site.gateway().await);
    let identity = site.host("hv1", &[Right::Backup], &two).await;
    let dead = one.address;
    one.stop().await;
    // Somebody has the port, and says nothing.
    let mut silent = std::net::UdpSocket::bind(dead);
    while silent.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        silent = std::net::UdpSocket::bind(dead);
    }
    for _ in 0..2 {
        let settings = tidegate_agent::store::StoreSettings {
            link: tidegate_agent::link::client::LinkSettings {
                identity: identity.clone(),
                ..Default::default()
            },
            ..Default::default()
        };
        let location = format!("quic://{dead},{}/main", two.address);
        let store = tidegate_agent::store::Store::open(&location, &settings).unwrap();
        let cache = tempfile::tempdir().unwrap();
        let keys = crate::lab::copy(&site.keys.host);
        tidegate_agent::repository::Repository::open(store, keys, cache.path())
            .await
            .unwrap();
    }
}
