//! Physical limits, as programs: they run as children of the bench, and are timed as its peers are.

use crate::image::Image;
use anyhow::{Context, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

const WINDOW_BYTES: usize = 1 << 20;

#[derive(clap::Args)]
pub(crate) struct HashArguments {
    image: PathBuf,
    #[arg(long)]
    threads: usize,
}

/// Reads and hashes what is allocated, window by window.
pub(crate) fn hash(arguments: &HashArguments) -> Result<()> {
    let image = Image::open(&arguments.image)?;
    let windows = image.windows(WINDOW_BYTES as u64);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let work = || -> Result<u8> {
            let mut buffer = vec![0; WINDOW_BYTES];
            let mut mixed = 0;
            while let Some(window) = windows.get(next.fetch_add(1, Ordering::Relaxed)) {
                let buffer = &mut buffer[..usize::try_from(window.end - window.start)?];
                image.read_at(window.start, buffer)?;
                mixed ^= blake3::hash(buffer).as_bytes()[0];
            }
            Ok(mixed)
        };
        let threads: Vec<_> = (0..arguments.threads).map(|_| scope.spawn(work)).collect();
        let mut mixed = 0;
        for thread in threads {
            mixed ^= thread
                .join()
                .map_err(|_| anyhow::anyhow!("a hashing thread panicked"))??;
        }
        // Said aloud, so that no compiler can leave the hashing out.
        println!("{mixed}");
        Ok(())
    })
}

#[derive(clap::Args)]
pub(crate) struct CopyArguments {
    image: PathBuf,
    to: PathBuf,
}

/// Copies what is allocated into a new sparse file and makes it durable.
pub(crate) fn copy(arguments: &CopyArguments) -> Result<()> {
    let image = Image::open(&arguments.image)?;
    let to = File::create_new(&arguments.to)
        .with_context(|| format!("make {}", arguments.to.display()))?;
    to.set_len(image.bytes)?;
    let mut buffer = vec![0; WINDOW_BYTES];
    for window in image.windows(WINDOW_BYTES as u64) {
        let buffer = &mut buffer[..usize::try_from(window.end - window.start)?];
        image.read_at(window.start, buffer)?;
        to.write_all_at(buffer, window.start)?;
    }
    to.sync_all()?;
    Ok(())
}
