//! What a host may not: tried, through the gateway, with the engine and by hand.

use crate::everyday::{assert_clean, disk};
use crate::lab::{back_up, copy, request, try_back_up};
use crate::raw::{ask, greeted, say};
use crate::site::Site;
use bytes::Bytes;
use futures::TryStreamExt;
use std::sync::Arc;
use std::time::Duration;
use tidegate_agent::Kind as ErrorKind;
use tidegate_agent::repository::Repository;
use tidegate_protocol::checkpoint;
use tidegate_protocol::ids::{PackId, SegmentId, SlotId};
use tidegate_protocol::record;
use tidegate_protocol::rights::Right;
use tidegate_protocol::wire::{
    AppendRequest, DeleteRequest, GetRequest, Kind, Priority, PutRequest, Status, StatusRequest,
    encode_request,
};

/// Every object that is there, and what it holds.
async fn everything(site: &Site) -> Vec<(String, Bytes)> {
    let listed: Vec<_> = site.store.list("", None).try_collect().await.unwrap();
    let mut all = Vec::new();
    for entry in listed {
        let bytes = site.store.get(&entry.key, 1 << 30).await.unwrap();
        all.push((entry.key, bytes));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_overwrites_and_deletes_nothing() {
    let site = Site::new().await;
    let gateway = site.gateway().await;
    let identity = site.host("hv1", &[Right::Backup], &gateway).await;
    let repository = site.open(&site.keys.host, &identity, &[&gateway]).await;
    back_up(&repository, Arc::new(disk(16, 1))).await;
    let before = everything(&site).await;

    let connection = greeted(&identity, gateway.address).await;
    let put = async |key: &str, body: &[u8]| {
        let message = PutRequest {
            key: key.to_owned(),
            length: body.len() as u64,
        };
        let mut frame = encode_request(Kind::Put, Priority::Backup, &message).unwrap();
        frame.extend_from_slice(body);
        say(&connection, &frame).await.unwrap().0
    };
    for (key, bytes) in &before {
        // With other bytes, with its own bytes, and gone.
        let expected = match key {
            key if key.starts_with("packs/") || key.starts_with("index/") => {
                [Status::Hash, Status::Exists]
            }
            _ => [Status::Denied, Status::Denied],
        };
        assert_eq!(put(key, b"other").await, expected[0], "{key}");
        assert_eq!(put(key, bytes).await, expected[1], "{key}");
        let delete = DeleteRequest { key: key.clone() };
        let (status, text) = ask(&connection, Kind::Delete, &delete).await;
        assert_eq!(status, Status::Denied, "{key}: {text}");
    }
    let body = b"a body of no use";
    for key in [
        "repository",
        &SlotId([7; 16]).object_key(),
        &record::object_key(999),
        &checkpoint::object_key(1),
        "probe/x",
        "elsewhere",
    ] {
        assert_eq!(put(key, body).await, Status::Denied, "{key}");
    }
    for key in [
        PackId([7; 32]).object_key(),
        SegmentId([7; 32]).object_key(),
    ] {
        assert_eq!(put(&key, body).await, Status::Hash, "{key}");
    }
    assert!(
        everything(&site).await == before,
        "something was changed by what was refused"
    );
}

/// Records that no reader would take never get into the log: damaged ones, those of another place, those
/// of a key that may not, and those that the host's rights do not cover.
#[tokio::test(flavor = "multi_thread")]
async fn only_sound_records_that_a_host_may_append_get_into_the_log() {
    let site = Site::new().await;
    let gateway = site.gateway().await;
    let identity = site.host("hv1", &[Right::Backup], &gateway).await;
    let connection = greeted(&identity, gateway.address).await;
    let append = async |number: u64, body: &[u8]| {
        let length = body.len() as u32;
        let mut frame = encode_request(
            Kind::Append,
            Priority::Backup,
            &AppendRequest { number, length },
        )
        .unwrap();
        frame.extend_from_slice(body);
        say(&connection, &frame).await.unwrap().0
    };
    let beside = site.beside().await;
    let head = beside.catalogue().head().unwrap();
    let next = head.number + 1;
    let made = |keys, body| record::encode(&body, &head, 1, [7; 32], keys).unwrap();
    let point_expired = || {
        record::Body::PointExpired(record::PointExpired {
            points: vec![vec![1; 16]],
            ..Default::default()
        })
    };
    let found_bad = || {
        record::Body::PacksFoundBad(record::PacksFoundBad {
            packs: vec![vec![1; 32]],
            ..Default::default()
        })
    };
    let sound = made(&site.keys.host, found_bad());
    let mut flipped = sound.clone();
    flipped[100] ^= 1;
    assert_eq!(append(next, b"no record").await, Status::Hash);
    assert_eq!(append(next, &flipped).await, Status::Hash);
    assert_eq!(append(next + 1, &sound).await, Status::Behind);
    assert_eq!(append(head.number, &sound).await, Status::Exists);
    // Signed by a key that may, and not covered by the rights of the host that sends it.
    assert_eq!(
        append(next, &made(&site.keys.restore, point_expired())).await,
        Status::Denied
    );
    assert_eq!(beside.catalogue().head().unwrap(), head);
    assert_eq!(append(next, &sound).await, Status::Ok);
    assert_eq!(append(next, &sound).await, Status::Exists);
    beside.refresh().await.unwrap();
    assert_eq!(beside.catalogue().head().unwrap().number, next);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_host_has_its_rights_and_no_others() {
    let site = Site::new().await;
    let gateway = site.gateway().await;
    let watches = site.host("watch", &[Right::Monitor], &gateway).await;
    let restores = site.host("dr", &[Right::Restore], &gateway).await;

    let connection = greeted(&watches, gateway.address).await;
    let get = GetRequest {
        key: "repository".to_owned(),
        start: 0,
        end: None,
    };
    assert_eq!(ask(&connection, Kind::Get, &get).await.0, Status::Denied);
    assert_eq!(
        ask(&connection, Kind::Status, &StatusRequest {}).await.0,
        Status::Ok
    );

    // It opens the repository with every key there is, and still cannot back up.
    let repository = site.open(&site.keys.restore, &restores, &[&gateway]).await;
    let error = try_back_up(&repository, request("web", Arc::new(disk(8, 1)), None))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");

    // Another repository's name is answered as one that is not there.
    for name in ["other", "Main", ".."] {
        let store = site.try_store_of(&restores, &[&gateway], name);
        let Ok(store) = store else { continue };
        let cache = tempfile::tempdir().unwrap();
        let opened = Repository::open(store, copy(&site.keys.restore), cache.path()).await;
        let error = opened.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Denied, "{name}: {error:?}");
        assert!(error.chain().contains("has no rights"), "{error:?}");
    }
}

/// Revoked in the middle of a run: the connection goes, the run fails loudly, the next one too; nothing
/// that was there is hurt.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_host_is_cut_off_in_the_middle() {
    let site = Site::new().await;
    let gateway = site.gateway().await;
    let identity = site.host("hv1", &[Right::Backup], &gateway).await;
    let repository = site.open(&site.keys.host, &identity, &[&gateway]).await;
    back_up(&repository, Arc::new(disk(16, 1))).await;
    // So slow that it is under way for long.
    let run = tokio::spawn({
        let repository = Arc::clone(&repository);
        let large = Arc::new(disk(512, 2));
        async move { try_back_up(&repository, request("large", large, Some(1 << 20))).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let revoked = site.authority.fleet().revoke("hv1", 1).await.unwrap();
    assert_eq!(revoked.len(), 1);
    let error = run.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    let again = try_back_up(&repository, request("web", Arc::new(disk(16, 1)), None)).await;
    let error = again.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    assert!(error.chain().contains("revoked"), "{error:?}");
    assert_clean(&site.beside().await).await;
}
