//! Gateways put small packs together, and hosts that reach the repository through them do not notice.

use crate::lab::{KIB, MIB, MemoryTarget, TrackedDisk, request, restore, try_back_up};
use crate::site::Site;
use futures::TryStreamExt;
use std::sync::Arc;
use std::time::Duration;
use tidegate_agent::Kind;
use tidegate_agent::progress::Progress;
use tidegate_agent::repository::BundleSettings;
use tidegate_protocol::ids::PackId;

use tidegate_protocol::rights::Right;
use tokio_util::sync::CancellationToken;

/// Cycles of two packs and an index segment each: more than a bundle, or a segment, that is not full needs.
const CYCLES: u64 = 260;

#[tokio::test(flavor = "multi_thread")]
async fn gateways_put_together_what_hosts_leave_behind() {
    let site = Site::new().await;
    let idle = site
        .gateway_with(|config| config.repositories[0].bundle = false)
        .await;
    let identity = site
        .host("hv1", &[Right::Backup, Right::Restore], &idle)
        .await;
    let host = site.open(&site.keys.restore, &identity, &[&idle]).await;
    let mut disk = TrackedDisk::new(8 * MIB, 4 * KIB);
    for number in 0..CYCLES {
        disk.write(number * 16 * KIB, &(number + 1).to_le_bytes().repeat(375));
        let made = try_back_up(&host, request("web", Arc::new(disk.freeze()), None)).await;
        disk.committed(made.unwrap().point.unwrap());
    }
    let often = |config: &mut tidegate_agent::gateway::GatewayConfig| {
        config.limits.expire_every = Duration::from_millis(50);
    };
    let head = host.catalogue().head().unwrap().number;
    let (one, other) = tokio::join!(site.gateway_with(often), site.gateway_with(often));
    for _ in 0..2400 {
        host.refresh().await.unwrap();
        if host.catalogue().head().unwrap().number == head + 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Time for a record too many.
    tokio::time::sleep(Duration::from_millis(300)).await;
    host.refresh().await.unwrap();
    assert_eq!(host.catalogue().head().unwrap().number, head + 2);
    let entries = site.store.list("packs/", None);
    let entries: Vec<_> = entries.try_collect().await.unwrap();
    let names = entries
        .iter()
        .map(|entry| PackId::from_object_key(&entry.key));
    let is_bundled = |pack: &PackId| host.catalogue().bundled(*pack).unwrap().is_some();
    let bundled = names.map(Option::unwrap).filter(is_bundled).count() as u64;
    assert!(bundled >= 2 * CYCLES - 1, "{bundled}");
    // An operator far away does not wait. What is in no bundle stays.
    let operator = site.host("op", &[Right::Maintenance], &idle).await;
    let operator = site.open(&site.keys.maintenance, &operator, &[&one]).await;
    let now = BundleSettings {
        grace: Duration::ZERO,
        ..BundleSettings::default()
    };
    let stop = CancellationToken::new();
    let done = operator.bundle(&now, &Progress::default(), &stop).await;
    assert_eq!(done.unwrap().deleted, bundled);
    let done = operator.merge_segments(&now, &stop).await.unwrap();
    assert_eq!(done.deleted, CYCLES);
    let left = site.store.list("packs/", None);
    let mut left: Vec<_> = left.try_collect().await.unwrap();
    assert_eq!(left.len() as u64, entries.len() as u64 - bundled);
    let segments = site.store.list("index/", None);
    let segments: Vec<_> = segments.try_collect().await.unwrap();
    assert_eq!(segments.len(), 1);
    left.extend(segments);
    for entry in left {
        let refused = operator.store().delete(&entry.key).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Denied, "{refused}");
    }

    // Through a gateway, by who has nothing in its cache.
    let other_host = site.host("hv2", &[Right::Restore], &idle).await;
    let anew = site.open(&site.keys.restore, &other_host, &[&other]).await;
    let point = anew.points(None).unwrap().pop().unwrap();
    let target = MemoryTarget::holding(vec![0; 8 << 20], true);
    restore(&anew, point.disk(None).unwrap(), target.clone())
        .await
        .unwrap();
    assert!(target.content() == disk.content());
    disk.write(0, &[0xee; 3000]);
    let made = try_back_up(&host, request("web", Arc::new(disk.freeze()), None)).await;
    assert!(made.unwrap().read_bytes < 100 * KIB);
    for gateway in [one, other, idle] {
        gateway.stop().await;
    }
}
