//! How records and checkpoints change the catalogue's tables.
//!
//! Plain functions from a record to statements, within the transaction of the caller. They believe
//! what they are given: signatures, rights and the chain were checked before.

use super::super::index::restore_spares;
use super::bundles::add_bundle;
use super::unsigned;
use rusqlite::{Connection, OptionalExtension, params};
use tidegate_protocol::checkpoint;
use tidegate_protocol::ids::{KeyId, PointId, RecordHash};
use tidegate_protocol::record::{
    self, Body, Head, Header, KeyChanged, PointCommitted, PointExpired,
};

pub(super) fn head_of(connection: &Connection) -> rusqlite::Result<Head> {
    connection.query_row("SELECT number, hash FROM head", [], |row| {
        Ok(Head {
            number: unsigned(row.get(0)?),
            hash: RecordHash(row.get(1)?),
        })
    })
}

pub(super) fn is_revoked(connection: &Connection, key: KeyId) -> rusqlite::Result<bool> {
    Ok(connection
        .prepare_cached("SELECT revoked FROM signer WHERE id = ?1")?
        .query_row([key.0], |row| row.get::<_, bool>(0))
        .optional()?
        .unwrap_or(false))
}

pub(super) fn set_head(
    connection: &Connection,
    number: u64,
    hash: RecordHash,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE head SET number = ?1, hash = ?2")?
        .execute(params![number.cast_signed(), hash.0])
        .map(drop)
}

pub(super) fn load_block(
    connection: &Connection,
    block: &checkpoint::Block,
) -> rusqlite::Result<()> {
    for point in &block.points {
        if let Some(body) = &point.point {
            add_point(connection, point.number, point.time_unix_ns, body)?;
            add_tree_packs(connection, &body.tree_packs)?;
        }
    }
    for segment in &block.segments {
        // A segment whose chunks were loaded before keeps that state.
        connection
            .prepare_cached(
                "INSERT INTO segment (id) VALUES (?1)
                 ON CONFLICT (id) DO UPDATE SET loaded = loaded % 2",
            )?
            .execute([segment])?;
    }
    for segment in &block.bad_segments {
        connection
            .prepare_cached(
                "INSERT INTO segment (id, bad) VALUES (?1, 1)
                 ON CONFLICT (id) DO UPDATE SET bad = 1, loaded = loaded % 2",
            )?
            .execute([segment])?;
    }
    for run in &block.runs {
        add_run(connection, run)?;
    }
    for hold in &block.holds {
        put_body(
            connection,
            "INSERT OR REPLACE INTO hold VALUES (?1, ?2)",
            &hold.hold,
            hold,
        )?;
    }
    for (list, sql) in [
        (
            &block.condemned,
            "INSERT OR IGNORE INTO condemned VALUES (?1)",
        ),
        (&block.swept, "INSERT OR IGNORE INTO swept VALUES (?1)"),
        (&block.bad, "INSERT OR IGNORE INTO bad VALUES (?1)"),
    ] {
        each(connection, sql, list)?;
    }
    for key in &block.keys {
        change_key(connection, key, 0)?;
    }
    for volume in &block.volumes {
        let sql = "INSERT OR REPLACE INTO volume VALUES (?1, ?2)";
        put_body(connection, sql, &volume.volume, volume)?;
    }
    for bundle in &block.bundles {
        // When it was recorded is not told: long ago.
        add_bundle(connection, bundle, 0)?;
    }
    add_tree_packs(connection, &block.tree_packs)
}

pub(super) fn apply(connection: &Connection, header: &Header, body: &Body) -> rusqlite::Result<()> {
    match body {
        Body::PointCommitted(point) => {
            add_point(connection, header.number, header.time_unix_ns, point)?;
            add_segments(connection, &point.segments)?;
            connection
                .prepare_cached("DELETE FROM run WHERE id = ?1")?
                .execute([&point.run])?;
            add_tree_packs(connection, &point.tree_packs)
        }
        Body::PointExpired(expired) => expire(connection, header, expired),
        Body::HoldSet(hold) => put_body(
            connection,
            "INSERT OR REPLACE INTO hold VALUES (?1, ?2)",
            &hold.hold,
            hold,
        ),
        Body::HoldLifted(hold) => connection
            .prepare_cached("DELETE FROM hold WHERE id = ?1")?
            .execute([&hold.hold])
            .map(drop),
        Body::PacksCondemned(condemned) => each(
            connection,
            "INSERT OR IGNORE INTO condemned VALUES (?1)",
            &condemned.packs,
        ),
        Body::PacksSwept(swept) => {
            for sql in [
                "INSERT OR IGNORE INTO swept VALUES (?1)",
                "DELETE FROM condemned WHERE pack = ?1",
                "DELETE FROM tree_pack WHERE id = ?1",
            ] {
                each(connection, sql, &swept.packs)?;
            }
            // Nothing is found in a swept pack, whether its rows are there or not: one pass over the
            // table for the whole record is enough.
            connection.execute_batch(
                "DELETE FROM chunk WHERE pack IN
                 (SELECT number FROM pack JOIN swept ON swept.pack = pack.id);
                 DELETE FROM spare WHERE pack IN
                 (SELECT number FROM pack JOIN swept ON swept.pack = pack.id);",
            )?;
            restore_spares(connection)?;
            each(
                connection,
                "DELETE FROM condemned WHERE pack = ?1",
                &swept.rescued,
            )
        }
        Body::ChunksRelocated(relocated) => add_segments(connection, &relocated.segments),
        Body::PacksFoundBad(bad) => {
            let sql = "INSERT OR IGNORE INTO bad VALUES (?1)";
            each(connection, sql, &bad.packs)?;
            if bad.segments.is_empty() {
                return Ok(());
            }
            let sql = "UPDATE segment SET bad = 1 WHERE id = ?1";
            each(connection, sql, &bad.segments)?;
            release_packs_of_bad_segments(connection)
        }
        Body::IndexMerged(merged) => {
            each(
                connection,
                "DELETE FROM segment WHERE id = ?1",
                &merged.removed,
            )?;
            for segment in &merged.removed {
                connection
                    .prepare_cached("INSERT OR IGNORE INTO merged VALUES (?1, ?2)")?
                    .execute(params![segment, header.time_unix_ns.cast_signed()])?;
            }
            add_segments(connection, &merged.added)
        }
        Body::PacksBundled(bundled) => add_bundle(connection, bundled, header.time_unix_ns),
        Body::VolumeOpened(volume) => put_body(
            connection,
            "INSERT OR REPLACE INTO volume VALUES (?1, ?2)",
            &volume.volume,
            volume,
        ),
        Body::KeyChanged(key) => change_key(connection, key, header.time_unix_ns),
        // Kept in the log for the audit; it changes no state.
        Body::Evidence(_) => Ok(()),
        Body::RunAnnounced(run) => {
            add_segments(connection, &run.segments)?;
            if run.abandoned {
                connection
                    .prepare_cached("DELETE FROM run WHERE id = ?1")?
                    .execute([&run.run])
                    .map(drop)
            } else {
                add_run(connection, run)
            }
        }
    }
}

/// The points go; that they did is remembered, for those who ask for one of them.
fn expire(
    connection: &Connection,
    header: &Header,
    expired: &PointExpired,
) -> rusqlite::Result<()> {
    let mut remember = connection.prepare_cached(
        "INSERT OR REPLACE INTO expired SELECT id, machine, ?2, ?3 FROM point WHERE id = ?1",
    )?;
    for id in &expired.points {
        let time = header.time_unix_ns.cast_signed();
        remember.execute(params![id, time, expired.reason])?;
    }
    each(
        connection,
        "DELETE FROM point WHERE id = ?1",
        &expired.points,
    )
}

/// Packs that bad segments named are to be named anew.
pub(super) fn release_packs_of_bad_segments(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "UPDATE pack SET segment = NULL WHERE segment IN (SELECT id FROM segment WHERE bad);",
    )
}

fn add_point(
    connection: &Connection,
    number: u64,
    time_unix_ns: u64,
    point: &PointCommitted,
) -> rusqlite::Result<()> {
    // A point without a proper name cannot be spoken of: it is left out.
    let Ok(PointId(id)) = record::point_id(&point.point) else {
        return Ok(());
    };
    connection
        .prepare_cached("INSERT OR IGNORE INTO point VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
        .execute(params![
            id,
            number.cast_signed(),
            time_unix_ns.cast_signed(),
            point.machine,
            point.taken_unix_ns.cast_signed(),
            checked_body(point),
            point.keep_until_unix_ns.cast_signed(),
        ])
        .map(drop)
}

fn add_segments(connection: &Connection, segments: &[Vec<u8>]) -> rusqlite::Result<()> {
    each(
        connection,
        "INSERT OR IGNORE INTO segment (id) VALUES (?1)",
        segments,
    )
}

fn add_run(connection: &Connection, run: &record::RunAnnounced) -> rusqlite::Result<()> {
    put_body(connection, "INSERT INTO run VALUES (?1, ?2)", &run.run, run)
}

fn add_tree_packs(connection: &Connection, packs: &[record::PackSize]) -> rusqlite::Result<()> {
    let mut statement =
        connection.prepare_cached("INSERT OR REPLACE INTO tree_pack VALUES (?1, ?2)")?;
    for pack in packs {
        statement.execute(params![pack.pack, pack.bytes.cast_signed()])?;
    }
    Ok(())
}

fn change_key(
    connection: &Connection,
    key: &KeyChanged,
    time_unix_ns: u64,
) -> rusqlite::Result<()> {
    let Ok(id) = <[u8; 16]>::try_from(key.key.as_slice()) else {
        return Ok(());
    };
    // A revocation is for ever.
    connection
        .prepare_cached(
            "INSERT INTO signer VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (id) DO UPDATE SET revoked = max(revoked, excluded.revoked)",
        )?
        .execute(params![
            id,
            key.level,
            key.label,
            key.slot,
            time_unix_ns.cast_signed(),
            key.revoked
        ])
        .map(drop)
}

fn put_body(
    connection: &Connection,
    sql: &str,
    id: &[u8],
    body: &impl prost::Message,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(sql)?
        .execute(params![id, checked_body(body)])
        .map(drop)
}

/// A body as the local file holds it: behind a hash of its own. SQLite does not notice a bit that
/// flipped within a row, and the row may be a point's size.
pub(super) fn checked_body(message: &impl prost::Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    let mut checked = super::body_hash(&body).to_vec();
    checked.extend(body);
    checked
}

fn each(connection: &Connection, sql: &str, list: &[Vec<u8>]) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(sql)?;
    for id in list {
        statement.execute([id])?;
    }
    Ok(())
}
