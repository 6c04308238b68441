//! What works beside the bucket works through a gateway, by the same engine.

use crate::lab::{
    ExpectingTarget, MIB, Tile, TiledDisk, back_up, newest, request, restore, try_back_up,
};
use crate::site::{Running, Site};
use std::sync::Arc;
use tidegate_agent::recover::{VerifySettings, verify};
use tidegate_agent::repository::Repository;
use tidegate_protocol::rights::Right;
use tokio_util::sync::CancellationToken;

pub fn disk(mib: u64, seed: u64) -> TiledDisk {
    TiledDisk::new(mib * MIB, move |tile| match tile % 5 {
        0 => Tile::Hole,
        _ => Tile::Data(seed.wrapping_mul(1_000_003).wrapping_add(tile)),
    })
}

pub async fn assert_clean(repository: &Arc<Repository>) {
    let points = repository.points(None).unwrap();
    assert!(!points.is_empty());
    let report = verify(
        repository,
        &points,
        &VerifySettings::default(),
        Arc::default(),
        CancellationToken::new(),
    )
    .await
    .unwrap();
    assert!(report.damages.is_empty() && report.complete, "{report:?}");
}

/// The newest point comes back as the disk that it was made of.
pub async fn assert_restores(repository: &Arc<Repository>, disk: &TiledDisk) {
    let target = ExpectingTarget::new(disk);
    let point = newest(repository);
    restore(repository, &point, target.clone()).await.unwrap();
    target.assert_complete();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_backs_up_and_another_restores_and_verifies() {
    let site = Site::new().await;
    let gateway = site.gateway().await;
    let backs_up = site.host("hv1", &[Right::Backup], &gateway).await;
    let restores = site.host("hv2", &[Right::Restore], &gateway).await;
    let repository = site.open(&site.keys.host, &backs_up, &[&gateway]).await;
    let first = disk(96, 1);
    let summary = back_up(&repository, Arc::new(first.clone())).await;
    assert_eq!(summary.new_bytes, first.data_bytes());
    let second = first.with([(7, Tile::Data(5)), (900, Tile::Hole)]);
    let summary = back_up(&repository, Arc::new(second.clone())).await;
    assert!(summary.new_bytes <= 4 * (64 << 10), "{summary:?}");

    let repository = site.open(&site.keys.restore, &restores, &[&gateway]).await;
    assert_restores(&repository, &second).await;
    assert_clean(&repository).await;
    assert_clean(&site.beside().await).await;
    gateway.stop().await;
}

/// Two hosts at once; then a third one's disk that is nearly one of theirs: it sends what is new, though
/// it has read no index.
#[tokio::test(flavor = "multi_thread")]
async fn hosts_share_what_any_of_them_has_stored() {
    let site = Site::new().await;
    let (one, two) = (site.gateway().await, site.gateway().await);
    let repository = async |host: &str, gateways: &[&Running]| {
        let identity = site.host(host, &[Right::Backup], gateways[0]).await;
        site.open(&site.keys.host, &identity, gateways).await
    };
    let (first, second) = (
        repository("hv1", &[&one]).await,
        repository("hv2", &[&two]).await,
    );
    let (left, right) = (disk(64, 1), disk(64, 2));
    let both = tokio::join!(
        try_back_up(&first, request("left", Arc::new(left.clone()), None)),
        try_back_up(&second, request("right", Arc::new(right), None)),
    );
    both.0.unwrap();
    both.1.unwrap();

    let third = repository("hv3", &[&two]).await;
    let near = left.with((0..10).map(|tile| (tile * 31 + 1, Tile::Data(99_000 + tile))));
    let before = third.store().requests();
    let summary = try_back_up(&third, request("near", Arc::new(near.clone()), None))
        .await
        .unwrap();
    let sent = third.store().requests().bytes_up - before.bytes_up;
    let read = third.store().requests().bytes_down - before.bytes_down;
    assert!(summary.new_bytes <= 30 * (64 << 10), "{summary:?}");
    assert!(
        sent * 20 < near.data_bytes(),
        "{sent} bytes were sent of {}",
        near.data_bytes()
    );
    assert!(
        read * 100 < near.data_bytes(),
        "{read} bytes were read: was the index?"
    );
    let beside = site.beside().await;
    assert_restores(&beside, &near).await;
    assert_clean(&beside).await;
}
