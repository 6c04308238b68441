//! The bench that decides how repositories are cut by default.
//!
//! Every way of chunking sees the same images, in sets: what dedupes is one set. A chunk counts once
//! a set, by its BLAKE3; what is new is packed in order into frames of 256 KiB and compressed, as the
//! engine does. Cutting is timed by the thread's CPU clock, so that a busy machine counts less, and
//! over windows of 1 MiB that were just read, so that the data is in cache, as in the engine.

mod cut;

use crate::image::Image;
use crate::table::{Table, grouped, mib};
use anyhow::{Context, Result};
pub(crate) use cut::{Method, Pieces, cpu_time};
use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

/// New chunks are gathered into frames of this size; a larger chunk is a frame of its own.
const FRAME_BYTES: usize = 256 << 10;

/// What a chunk costs beside its bytes: entries in the index, in a pack's footer, in a leaf page.
const METADATA_BYTES_PER_CHUNK: u64 = 140;

/// The two levels of zstd that matter: the quickest, and the default of the field.
const LEVELS: [i32; 2] = [1, 3];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folders of raw images (*.raw); what lies in one folder is deduplicated together
    #[arg(required = true, value_name = "FOLDER")]
    sets: Vec<PathBuf>,
    /// Only the methods whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Write the tables to this file, too
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// What one method makes of one set.
#[derive(Default)]
struct Outcome {
    chunks: u64,
    unique_chunks: u64,
    data_bytes: u64,
    unique_bytes: u64,
    stored_bytes: [u64; LEVELS.len()],
    cut_bytes: u64,
    cut_time: Duration,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut text = String::new();
    for folder in &arguments.sets {
        let name = folder.file_name().unwrap_or(folder.as_os_str());
        let images = Image::open_folder(folder)?;
        let mut table = Table::new(&[
            "Chunks",
            "average KiB",
            "chunks",
            "unique chunks",
            "unique MiB",
            "zstd 1 MiB",
            "zstd 3 MiB",
            "metadata MiB",
            "zstd 3 + metadata",
            "cut GB/s",
        ]);
        let mut nonzero_bytes = 0;
        for image in &images {
            image.each_block(&mut |block| {
                nonzero_bytes += block.len() as u64;
                Ok(())
            })?;
        }
        for method in Method::all() {
            if !method.name.contains(&arguments.only) {
                continue;
            }
            let outcome = measure(&images, &method)
                .with_context(|| format!("{} on {}", method.name, folder.display()))?;
            eprintln!(
                "{}: {}: {} MiB unique",
                name.display(),
                method.name,
                mib(outcome.unique_bytes)
            );
            table.row(outcome.cells(method.name));
        }
        writeln!(
            text,
            "{}: {} images, {} MiB in blocks that are not zero\n\n{table}",
            name.display(),
            images.len(),
            mib(nonzero_bytes)
        )?;
    }
    let text = format!(
        "# Chunking\n\n\
         Written by `tidegate-benches chunking`. Sizes are left after dedupe within the set; metadata is\n\
         counted at {METADATA_BYTES_PER_CHUNK} bytes a unique chunk. Names give minimum/average/maximum in KiB and where cuts at\n\
         ends of files begin. Cutting is one thread's CPU time over data in cache.\n\n{text}"
    );
    print!("{text}");
    if let Some(out) = &arguments.out {
        std::fs::write(out, text).with_context(|| format!("write {}", out.display()))?;
    }
    Ok(())
}

impl Outcome {
    #[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
    fn cells(&self, name: &str) -> Vec<String> {
        let average = self.data_bytes as f64 / self.chunks.max(1) as f64 / 1024.0;
        let metadata = self.unique_chunks * METADATA_BYTES_PER_CHUNK;
        let speed = self.cut_bytes as f64 / self.cut_time.as_secs_f64() / 1e9;
        let [stored_1, stored_3] = self.stored_bytes;
        vec![
            name.to_owned(),
            format!("{average:.1}"),
            grouped(self.chunks),
            grouped(self.unique_chunks),
            mib(self.unique_bytes),
            mib(stored_1),
            mib(stored_3),
            mib(metadata),
            mib(stored_3 + metadata),
            match speed {
                // Fixed sizes look at the first word of a chunk, mostly.
                100.0.. => "> 100".to_owned(),
                _ => format!("{speed:.1}"),
            },
        ]
    }
}

/// Cuts, dedupes and compresses a whole set; one thread a level of compression beside this one.
fn measure(images: &[Image], method: &Method) -> Result<Outcome> {
    std::thread::scope(|scope| {
        let (senders, threads): (Vec<_>, Vec<_>) = LEVELS
            .iter()
            .map(|&level| {
                let (sender, frames) = sync_channel::<std::sync::Arc<Vec<u8>>>(16);
                let thread = scope.spawn(move || -> Result<u64> {
                    let mut zstd = zstd::bulk::Compressor::new(level)?;
                    let mut out = vec![0; zstd::zstd_safe::compress_bound(5 << 20)];
                    let mut stored = 0;
                    for frame in frames {
                        // What does not shrink is stored as it is.
                        let bytes = zstd.compress_to_buffer(&frame[..], &mut out)?;
                        stored += bytes.min(frame.len()) as u64;
                    }
                    Ok(stored)
                });
                (sender, thread)
            })
            .unzip();
        let outcome = dedupe(images, method, senders);
        let stored: Vec<_> = threads
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        let mut outcome = outcome?;
        for (total, stored) in outcome.stored_bytes.iter_mut().zip(stored) {
            *total = stored.map_err(|_| anyhow::anyhow!("a compressing thread panicked"))??;
        }
        Ok(outcome)
    })
}

/// Cuts every image and hands what is new to the compressors.
fn dedupe(
    images: &[Image],
    method: &Method,
    compressors: Vec<SyncSender<std::sync::Arc<Vec<u8>>>>,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut known: HashSet<[u8; 16]> = HashSet::new();
    let mut frame = Vec::with_capacity(FRAME_BYTES);
    let send = |frame: &mut Vec<u8>| -> Result<()> {
        if !frame.is_empty() {
            let full = std::sync::Arc::new(std::mem::take(frame));
            for compressor in &compressors {
                compressor
                    .send(full.clone())
                    .context("a compressing thread ended early")?;
            }
        }
        Ok(())
    };
    for image in images {
        let pieces = Pieces::of(image, method);
        let spent = pieces.each(&mut |chunk| {
            outcome.chunks += 1;
            outcome.data_bytes += chunk.len() as u64;
            let hash = blake3::hash(chunk);
            if known.insert(*hash.as_bytes().first_chunk().context("32 bytes")?) {
                outcome.unique_chunks += 1;
                outcome.unique_bytes += chunk.len() as u64;
                if frame.len() + chunk.len() > FRAME_BYTES {
                    send(&mut frame)?;
                }
                frame.extend_from_slice(chunk);
            }
            Ok(())
        })?;
        outcome.cut_bytes += spent.bytes;
        outcome.cut_time += spent.time;
    }
    send(&mut frame)?;
    Ok(outcome)
}
