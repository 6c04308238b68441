//! The bench that decides how frames are compressed by default.
//!
//! Images are cut as a new repository cuts them, and deduplicated; of what is unique every so many MiB
//! are kept, and compressed in frames of several sizes at several settings. Both ways are timed by the
//! thread's CPU clock, so that a busy machine counts less.

use crate::chunking::{Method, Pieces, cpu_time};
use crate::image::Image;
use crate::table::{Table, mib};
use anyhow::{Context, Result};
use std::collections::HashSet;
use std::path::PathBuf;
use tidegate_protocol::frame::PayloadEncoder;
use zstd::bulk::{Compressor, Decompressor};

/// What new repositories cut by.
const CHUNKS: &str = "aligned 16/32/64, EOF 8";

/// Unique data is sampled in groups of this size, which hold whole frames.
const GROUP_BYTES: u64 = 4 << 20;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folders of raw images (*.raw); what lies in one folder is deduplicated together
    #[arg(required = true, value_name = "FOLDER")]
    sets: Vec<PathBuf>,
    /// Of so many groups of 4 MiB one is compressed
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// Write the tables to this file, too
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// How a frame is compressed.
#[derive(Clone, Copy)]
enum Setting {
    /// As zstd sets its tables for a level.
    Level(i32),
    /// As the engine does by default.
    Engine,
}

/// Settings, and frames in KiB.
const ROWS: [(Setting, usize); 14] = [
    (Setting::Level(-3), 256),
    (Setting::Level(-1), 256),
    (Setting::Level(1), 256),
    (Setting::Engine, 256),
    (Setting::Level(2), 256),
    (Setting::Level(3), 256),
    (Setting::Level(4), 256),
    (Setting::Level(6), 256),
    (Setting::Engine, 64),
    (Setting::Engine, 128),
    (Setting::Engine, 512),
    (Setting::Engine, 1024),
    (Setting::Level(3), 512),
    (Setting::Level(3), 1024),
];

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut text = format!(
        "# Compression\n\n\
         Written by `tidegate-benches compression`: unique chunks ({CHUNKS}), one group of 4 MiB in {}, compressed \
         frame by frame by one thread; *stored* is extrapolated. \"engine\" is level 1 with tidegate's tables.\n",
        arguments.every
    );
    for folder in &arguments.sets {
        let name = folder.file_name().unwrap_or(folder.as_os_str());
        let images = Image::open_folder(folder)?;
        let sample = sample(&images, arguments.every)?;
        let mut table = Table::new(&[
            "zstd",
            "frame KiB",
            "stored MiB",
            "compress MiB/s",
            "decompress MiB/s",
        ]);
        for (setting, frame_kib) in ROWS {
            table.row(row(&sample, setting, frame_kib)?);
        }
        text += &format!(
            "\n{}: {} images, {} MiB unique\n\n{table}",
            name.display(),
            images.len(),
            mib(sample.unique_bytes)
        );
    }
    print!("{text}");
    if let Some(out) = &arguments.out {
        std::fs::write(out, text).with_context(|| format!("write {}", out.display()))?;
    }
    Ok(())
}

struct Sample {
    unique_bytes: u64,
    /// Each a row of chunks.
    groups: Vec<Vec<Vec<u8>>>,
}

fn sample(images: &[Image], every: u64) -> Result<Sample> {
    let method = Method::all()
        .into_iter()
        .find(|method| method.name == CHUNKS)
        .context("the default chunking is among the methods")?;
    let mut sample = Sample {
        unique_bytes: 0,
        groups: Vec::new(),
    };
    let mut known: HashSet<[u8; 16]> = HashSet::new();
    let mut current = None;
    for image in images {
        Pieces::of(image, &method).each(&mut |chunk| {
            let hash = blake3::hash(chunk);
            if known.insert(*hash.as_bytes().first_chunk().context("32 bytes")?) {
                let group = sample.unique_bytes / GROUP_BYTES;
                sample.unique_bytes += chunk.len() as u64;
                if group.is_multiple_of(every) {
                    if current != Some(group) {
                        current = Some(group);
                        sample.groups.push(Vec::new());
                    }
                    if let Some(last) = sample.groups.last_mut() {
                        last.push(chunk.to_vec());
                    }
                }
            }
            Ok(())
        })?;
    }
    Ok(sample)
}

/// Makes of a frame what is stored of it.
type Compress = dyn FnMut(&[u8]) -> Result<Vec<u8>>;

#[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
fn row(sample: &Sample, setting: Setting, frame_kib: usize) -> Result<Vec<String>> {
    let mut compress: Box<Compress> = match setting {
        Setting::Level(level) => {
            let mut zstd = Compressor::new(level)?;
            Box::new(move |frame| Ok(zstd.compress(frame)?))
        }
        Setting::Engine => {
            let mut encoder = PayloadEncoder::new(1)?;
            Box::new(move |frame| Ok(encoder.encode(frame).to_vec()))
        }
    };
    let mut decompressor = Decompressor::new()?;
    let mut out = vec![0; frame_kib << 11];
    let (mut raw_bytes, mut stored_bytes) = (0, 0);
    let mut spent = [std::time::Duration::ZERO; 2];
    let mut frame = Vec::new();
    let mut flush = |frame: &mut Vec<u8>| -> Result<()> {
        let start = cpu_time();
        let compressed = compress(frame)?;
        let between = cpu_time();
        // The engine's payloads say first how they were made.
        let content = match setting {
            Setting::Level(_) => Some(&compressed[..]),
            Setting::Engine if compressed.first() == Some(&1) => compressed.get(5..),
            Setting::Engine => None,
        };
        if let Some(content) = content {
            decompressor.decompress_to_buffer(content, &mut out)?;
        }
        spent[0] += between.saturating_sub(start);
        spent[1] += cpu_time().saturating_sub(between);
        raw_bytes += frame.len() as u64;
        // What does not shrink is stored as it is.
        stored_bytes += compressed.len().min(frame.len()) as u64;
        frame.clear();
        Ok(())
    };
    for group in &sample.groups {
        for chunk in group {
            if !frame.is_empty() && frame.len() + chunk.len() > frame_kib << 10 {
                flush(&mut frame)?;
            }
            frame.extend_from_slice(chunk);
        }
        flush(&mut frame)?;
    }
    let stored = stored_bytes as f64 / raw_bytes as f64 * sample.unique_bytes as f64;
    let speed = |time: std::time::Duration| raw_bytes as f64 / 1048576.0 / time.as_secs_f64();
    Ok(vec![
        match setting {
            Setting::Level(level) => format!("level {level}"),
            Setting::Engine => "engine".to_owned(),
        },
        frame_kib.to_string(),
        format!("{:.0}", stored / 1048576.0),
        format!("{:.0}", speed(spent[0])),
        format!("{:.0}", speed(spent[1])),
    ])
}
