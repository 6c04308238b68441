//! Gateways give points up: several at once, for hosts that could not.

use crate::everyday::disk;
use crate::lab::{request, try_back_up};
use crate::site::Site;
use std::sync::Arc;
use std::time::Duration;
use tidegate_agent::Kind;
use tidegate_agent::clock;
use tidegate_agent::replicate::Moment;
use tidegate_agent::repository::ExpireScope;
use tidegate_agent::retention::Keep;
use tidegate_protocol::ids::PointId;
use tidegate_protocol::record::Consistency;
use tidegate_protocol::rights::Right;

const DAY: u64 = 86_400_000_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn gateways_give_up_what_hosts_may_not() {
    let site = Site::new().await;
    let idle = site
        .gateway_with(|config| config.repositories[0].expire = false)
        .await;
    let identity = site.host("hv1", &[Right::Backup], &idle).await;
    let host = site.open(&site.keys.host, &identity, &[&idle]).await;
    for nth in 1..=3 {
        let mut request = request("web", Arc::new(disk(8, nth.into())), None);
        request.moment = Some(Moment {
            point: PointId([nth; 16]),
            taken_unix_ns: clock::now_unix_ns() - DAY,
            consistency: Consistency::Crash,
            together: None,
        });
        request.keep = Keep::For(Duration::from_secs(1));
        try_back_up(&host, request).await.unwrap();
    }
    // Its key may not; and with a key that may, it lacks the right.
    let everything = ExpireScope::default();
    let refused = host.expire(&everything).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Denied);
    let taken_over = site.open(&site.keys.maintenance, &identity, &[&idle]).await;
    let refused = taken_over.expire(&everything).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Denied, "{refused}");
    assert!(
        refused.chain().contains("point expired"),
        "{}",
        refused.chain()
    );
    let head = site.beside().await.catalogue().head().unwrap().number;

    let often = |config: &mut tidegate_agent::gateway::GatewayConfig| {
        config.limits.expire_every = Duration::from_millis(50);
    };
    let (one, other) = tokio::join!(site.gateway_with(often), site.gateway_with(often));
    for _ in 0..2400 {
        host.refresh().await.unwrap();
        if host.points(None).unwrap().len() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Time for a record too many.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let beside = site.beside().await;
    let points = beside.points(None).unwrap();
    assert_eq!(
        points.iter().map(|point| point.id).collect::<Vec<_>>(),
        [PointId([3; 16])]
    );
    assert_eq!(beside.catalogue().head().unwrap().number, head + 1);
    for gateway in [one, other, idle] {
        gateway.stop().await;
    }
}
