//! The ways of chunking that are compared, each driven the way its users drive it.

use crate::image::Image;
use anyhow::Result;
use fastcdc::v2020::FastCDC;
use rustix::time::{ClockId, clock_gettime};
use std::ops::Range;
use std::time::Duration;
use tidegate_agent::chunk::{
    ChunkerParams, Cutter, Piece, Region, SPAN_BYTES, allocated_runs, cut_ranges, partition,
};
use tidegate_protocol::limits::CHUNK_BYTES_MAX;

const KIB: u32 = 1024;

/// Bytes read at once. Small enough to stay in a core's cache until they are cut.
const WINDOW_BYTES: usize = 1 << 20;

/// Any fixed seed: the bench speaks for no repository.
const SEED: u64 = 0x7469_6465;

/// A named way of chunking.
pub(crate) struct Method {
    pub(crate) name: &'static str,
    rule: Rule,
}

#[derive(Clone, Copy)]
enum Rule {
    Tidegate(ChunkerParams),
    /// Cuts wherever bytes say so, over each allocated extent of the disk; no spans. That holes cut
    /// for it is a favour: its users feed it the zeros.
    FastCdc {
        chunk_bytes_avg: usize,
    },
}

impl Method {
    /// In the order of the table.
    pub(crate) fn all() -> Vec<Self> {
        let fixed = |name, kib: u32| Self {
            name,
            rule: Rule::Tidegate(ChunkerParams::Fixed {
                chunk_bytes: kib * KIB,
            }),
        };
        let fastcdc = |name, kib: usize| Self {
            name,
            rule: Rule::FastCdc {
                chunk_bytes_avg: kib << 10,
            },
        };
        let aligned = |name, min, avg, max, eof| Self {
            name,
            rule: Rule::Tidegate(ChunkerParams::BlockAligned {
                chunk_bytes_min: min * KIB,
                chunk_bytes_avg: avg * KIB,
                chunk_bytes_max: max * KIB,
                eof_cut_bytes_min: eof * KIB,
            }),
        };
        vec![
            fixed("fixed 4 MiB", 4096),
            fixed("fixed 64 KiB", 64),
            fixed("fixed 16 KiB", 16),
            fixed("fixed 4 KiB", 4),
            fastcdc("FastCDC 64 KiB", 64),
            fastcdc("FastCDC 16 KiB", 16),
            aligned("aligned 32/128/512, EOF 16", 32, 128, 512, 16),
            aligned("aligned 16/64/256, EOF off", 16, 64, 256, 0),
            aligned("aligned 16/64/256, EOF 16", 16, 64, 256, 16),
            aligned("aligned 8/64/256, EOF 8", 8, 64, 256, 8),
            aligned("aligned 16/64/128, EOF 8", 16, 64, 128, 8),
            aligned("aligned 8/32/128, EOF 8", 8, 32, 128, 8),
            aligned("aligned 16/32/64, EOF off", 16, 32, 64, 0),
            aligned("aligned 16/32/64, EOF 16", 16, 32, 64, 16),
            aligned("aligned 16/32/64, EOF 8", 16, 32, 64, 8),
            aligned("aligned 16/64/128, EOF 4", 16, 64, 128, 4),
            aligned("aligned 16/32/64, EOF 4", 16, 32, 64, 4),
            aligned("aligned 8/16/64, EOF 8", 8, 16, 64, 8),
            aligned("aligned 8/16/32, EOF 4", 8, 16, 32, 4),
        ]
    }
}

/// [`Cutter::cut`], or what stands for it.
type Cut<'a> = dyn FnMut(&[u8], bool, &mut Vec<Piece>) -> usize + 'a;

/// What cutting cost.
#[derive(Default)]
pub(crate) struct Spent {
    /// Bytes looked at, zeros among them.
    pub(crate) bytes: u64,
    /// CPU time of the cutting alone, without the reading.
    pub(crate) time: Duration,
}

/// One image and the way it is cut.
pub(crate) struct Pieces<'a> {
    image: &'a Image,
    rule: Rule,
}

impl<'a> Pieces<'a> {
    pub(crate) fn of(image: &'a Image, method: &Method) -> Self {
        Self {
            image,
            rule: method.rule,
        }
    }

    /// Hands every chunk of the image to `consume`, in order.
    pub(crate) fn each(&self, consume: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Spent> {
        let mut spent = Spent::default();
        match self.rule {
            Rule::Tidegate(params) => {
                params.validate()?;
                let mut cutter = Cutter::new(&params, SEED);
                for run in self.runs(&params)? {
                    self.windows(run, &mut spent, consume, &mut |data, last, pieces| {
                        cutter.cut(data, last, pieces)
                    })?;
                }
            }
            Rule::FastCdc { chunk_bytes_avg } => {
                let whole = 0..self.image.bytes;
                for run in allocated_runs(whole, &self.image.allocation, 4096) {
                    self.windows(run, &mut spent, consume, &mut |data, last, pieces| {
                        cut_by_fastcdc(chunk_bytes_avg, data, last, pieces)
                    })?;
                }
            }
        }
        Ok(spent)
    }

    /// What the engine cuts on its own: allocated runs of ranges of spans.
    fn runs(&self, params: &ChunkerParams) -> Result<Vec<Range<u64>>> {
        let disk_bytes = self.image.bytes;
        let regions: Vec<Region> = match params {
            ChunkerParams::Fixed { .. } => partition::whole(disk_bytes),
            ChunkerParams::BlockAligned { .. } => {
                partition::regions(disk_bytes, &mut |at, buffer| {
                    self.image.read_at(at, buffer).map_err(|error| {
                        tidegate_agent::Error::new(tidegate_agent::Kind::Io, error.to_string())
                    })
                })
                .map_err(|error| anyhow::anyhow!(error.chain()))?
            }
        };
        let mut runs = Vec::new();
        let mut start = 0;
        while start < disk_bytes {
            let end = (start + SPAN_BYTES).min(disk_bytes);
            for range in cut_ranges(start..end, &regions) {
                runs.extend(allocated_runs(
                    range,
                    &self.image.allocation,
                    params.grain_bytes(),
                ));
            }
            start = end;
        }
        Ok(runs)
    }

    /// Reads `run` in windows into one buffer, with the unconsumed tail carried to its front.
    fn windows(
        &self,
        run: Range<u64>,
        spent: &mut Spent,
        consume: &mut dyn FnMut(&[u8]) -> Result<()>,
        cut: &mut Cut<'_>,
    ) -> Result<()> {
        let mut buffer = vec![0; CHUNK_BYTES_MAX as usize + WINDOW_BYTES];
        let mut pieces = Vec::new();
        let mut tail = 0;
        let mut at = run.start;
        while at < run.end {
            let window = usize::try_from(run.end - at)?.min(WINDOW_BYTES);
            self.image.read_at(at, &mut buffer[tail..tail + window])?;
            at += window as u64;
            let filled = tail + window;
            pieces.clear();
            let before = cpu_time();
            let consumed = cut(&buffer[..filled], at == run.end, &mut pieces);
            spent.time += cpu_time().saturating_sub(before);
            spent.bytes += window as u64;
            let mut from = 0;
            for piece in &pieces {
                let to = from + piece.length();
                if matches!(piece, Piece::Data { .. }) {
                    consume(&buffer[from..to])?;
                }
                from = to;
            }
            buffer.copy_within(consumed..filled, 0);
            tail = filled - consumed;
        }
        Ok(())
    }
}

fn cut_by_fastcdc(
    chunk_bytes_avg: usize,
    data: &[u8],
    last: bool,
    pieces: &mut Vec<Piece>,
) -> usize {
    let chunk_bytes_max = chunk_bytes_avg * 4;
    let chunker = FastCDC::new(data, chunk_bytes_avg / 4, chunk_bytes_avg, chunk_bytes_max);
    let mut at = 0;
    while at < data.len() && (last || data.len() - at >= chunk_bytes_max) {
        let (_, end) = chunker.cut(at, data.len() - at);
        pieces.push(Piece::Data { length: end - at });
        at = end;
    }
    at
}

/// CPU time of this thread.
pub(crate) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::{Method, Pieces};
    use crate::image::Image;

    /// Every method hands out all the data, or the bench would praise what it loses.
    #[test]
    fn no_method_loses_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.raw");
        let mut bytes = vec![0; (9 << 20) + 1234];
        let mut random = blake3::Hasher::new().finalize_xof();
        random.fill(&mut bytes[..3 << 20]);
        random.fill(&mut bytes[5_000_000..5_001_000]);
        random.fill(&mut bytes[6 << 20..]);
        std::fs::write(&path, &bytes).unwrap();
        let image = Image::open(&path).unwrap();
        let data: Vec<u8> = bytes.iter().copied().filter(|&byte| byte != 0).collect();
        for method in Method::all() {
            let mut seen = Vec::new();
            Pieces::of(&image, &method)
                .each(&mut |chunk| {
                    seen.extend(chunk.iter().copied().filter(|&byte| byte != 0));
                    Ok(())
                })
                .unwrap();
            assert!(seen == data, "{}", method.name);
        }
    }
}
