//! Histories: what happens to machines, hosts and the repository, drawn from a seed.
//!
//! A step names disks, points and hosts by numbers that are taken modulo what is there when it runs:
//! any part of a history is a history too, which is what shrinking needs. The seed says everything
//! about a history; what it leads to also depends on keys and names, which are drawn anew each time.

use std::fmt;
use tidegate_protocol::descriptor::ChunkerParams;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Numbers that look random and follow from a seed (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `bound`; zero where that is zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or(0)
    }

    pub(crate) fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        let number = self.below(choices.len() as u64);
        choices[usize::try_from(number).unwrap_or(0)]
    }
}

/// A place on a disk of any size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    number: u64,
    /// Places count from multiples of this, and from the disk's end.
    grid: Option<u64>,
    /// Bytes before the multiple.
    back: u64,
    aligned: bool,
}

impl Place {
    /// The disk's first byte.
    pub(crate) const START: Self = Self {
        number: 0,
        grid: None,
        back: 0,
        aligned: true,
    };

    /// Where that is on a disk of `size_bytes`.
    pub(crate) fn on(&self, size_bytes: u64) -> u64 {
        let at = match self.grid {
            None => self.number.checked_rem(size_bytes).unwrap_or(0),
            Some(grid) => {
                let multiples = size_bytes / grid + 1;
                let edge = match self.number % (multiples + 1) {
                    last if last == multiples => size_bytes,
                    multiple => multiple * grid,
                };
                edge.saturating_sub(self.back)
            }
        };
        match self.aligned {
            true => at / 4096 * 4096,
            false => at,
        }
    }
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fill {
    /// Bytes that do not compress and are nowhere else.
    Noise(u64),
    /// Bytes that do, and end like a file.
    Text(u64),
    /// One of a few files that many disks have.
    Shared(u64),
    Byte(u8),
    /// A DOS partition table with a partition that begins at this sector of 512 bytes: perhaps off the
    /// 4 KiB grid, which shifts where chunks begin.
    Table(u8),
}

impl Fill {
    pub(crate) fn bytes(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let noise = |seed: u64, bytes: &mut [u8]| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&seed.to_le_bytes());
            hasher.finalize_xof().fill(bytes);
        };
        match self {
            Self::Noise(seed) | Self::Shared(seed) => noise(*seed, &mut bytes),
            Self::Text(seed) => {
                for (number, block) in (0..).zip(bytes.chunks_mut(4096)) {
                    let third = block.len() / 3;
                    noise(seed.wrapping_add(number), &mut block[..third]);
                }
            }
            Self::Byte(byte) => bytes.fill(*byte),
            Self::Table(first_sector) => {
                let mut table = [0; 512];
                table[446 + 4] = 0x83;
                table[446 + 8] = *first_sector;
                table[446 + 12..446 + 16].copy_from_slice(&8192_u32.to_le_bytes());
                table[510..].copy_from_slice(&[0x55, 0xaa]);
                for (to, from) in bytes.iter_mut().zip(table) {
                    *to = from;
                }
            }
        }
        bytes
    }
}

/// How a backup ends before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It does not.
    Own,
    /// The process dies at that call to the store, before or after it took effect.
    Dies { calls: u64, after_effect: bool },
    /// The operator stops it after that many reads.
    Stopped { reads: u64 },
}

/// Where a restore goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Onto {
    New,
    /// New, and full of something else.
    Dirty,
    /// In place, onto another point's disk.
    OtherPoint(u64),
    /// In place, onto the machine's disk as it is now, with some bytes spoilt.
    Spoilt(u64),
    File,
    FileInPlace(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    AddDisk {
        machine: u64,
        size_bytes: u64,
    },
    Write {
        disk: u64,
        at: Place,
        length: u64,
        fill: Fill,
    },
    Zero {
        disk: u64,
        at: Place,
        length: u64,
    },
    Resize {
        disk: u64,
        size_bytes: u64,
    },
    /// From one disk to another: shared content, at other places.
    Copy {
        from: u64,
        to: u64,
        from_at: Place,
        to_at: Place,
        length: u64,
    },
    BackUp {
        machine: u64,
        host: u64,
        end: End,
        draw: u64,
    },
    Restore {
        point: u64,
        disk: u64,
        onto: Onto,
        draw: u64,
    },
    Diff {
        host: u64,
        from: u64,
        to: u64,
        disk: u64,
    },
    Export {
        point: u64,
        disk: u64,
        draw: u64,
    },
    Verify {
        points: u64,
    },
    Reopen {
        host: u64,
    },
    LoseCache {
        host: u64,
    },
    Checkpoint,
}

/// A world to live in, and what happens in it.
#[derive(Debug, Clone)]
pub(crate) struct History {
    pub(crate) seed: u64,
    pub(crate) chunker: ChunkerParams,
    /// One call to the store in so many goes wrong; 0: none.
    pub(crate) one_fault_in: u64,
    /// Numbered from 1 in the seed's full history.
    pub(crate) steps: Vec<(usize, Step)>,
}

impl History {
    /// The history of a seed, that many steps long.
    pub(crate) fn of(seed: u64, steps: usize) -> Self {
        let mut random = Random::new(seed);
        let aligned = |min: u32, avg: u32, max: u32, eof: u32| ChunkerParams::BlockAligned {
            chunk_bytes_min: min << 10,
            chunk_bytes_avg: avg << 10,
            chunk_bytes_max: max << 10,
            eof_cut_bytes_min: eof << 10,
        };
        let chunker = match random.below(6) {
            0 => aligned(8, 16, 64, 8),
            1 => aligned(4, 4, 8, 0),
            2 => ChunkerParams::Fixed {
                chunk_bytes: 16 << 10,
            },
            _ => aligned(16, 32, 64, 8),
        };
        let one_fault_in = random.of(&[0, 0, 60, 200]);
        let mut drawn = vec![
            Step::AddDisk {
                machine: 0,
                size_bytes: size(&mut random),
            },
            Step::AddDisk {
                machine: 1,
                size_bytes: size(&mut random),
            },
        ];
        drawn.extend((2..steps.max(2)).map(|_| step(&mut random)));
        drawn.truncate(steps);
        Self {
            seed,
            chunker,
            one_fault_in,
            steps: (1..).zip(drawn).collect(),
        }
    }

    /// The same with some of its steps only.
    pub(crate) fn with(&self, steps: Vec<(usize, Step)>) -> Self {
        Self {
            steps,
            ..self.clone()
        }
    }
}

fn step(random: &mut Random) -> Step {
    match random.below(100) {
        0 => Step::AddDisk {
            machine: random.below(60),
            size_bytes: size(random),
        },
        1 => Step::Write {
            disk: random.below(60),
            at: Place::START,
            length: 512,
            fill: Fill::Table(random.of(&[63, 63, 64, 34])),
        },
        2..=27 => Step::Write {
            disk: random.below(60),
            at: place(random),
            length: length(random),
            fill: fill(random),
        },
        28..=35 => Step::Zero {
            disk: random.below(60),
            at: place(random),
            length: length(random) * random.of(&[1, 1, 16]),
        },
        36..=38 => Step::Resize {
            disk: random.below(60),
            size_bytes: size(random),
        },
        39..=44 => Step::Copy {
            from: random.below(60),
            to: random.below(60),
            from_at: place(random),
            to_at: place(random),
            length: length(random),
        },
        45..=62 => Step::BackUp {
            machine: random.below(60),
            host: random.below(60),
            end: match random.below(8) {
                0 | 1 => End::Dies {
                    calls: random.below(9),
                    after_effect: random.one_in(2),
                },
                2 => End::Stopped {
                    reads: random.below(8),
                },
                _ => End::Own,
            },
            draw: random.below(1_000_000),
        },
        63..=78 => Step::Restore {
            point: random.below(10_000),
            disk: random.below(60),
            onto: match random.below(8) {
                0 | 1 => Onto::New,
                2 => Onto::Dirty,
                3 => Onto::OtherPoint(random.below(10_000)),
                4 | 5 => Onto::Spoilt(random.below(1_000_000)),
                6 => Onto::File,
                _ => Onto::FileInPlace(random.below(1_000_000)),
            },
            draw: random.below(1_000_000),
        },
        79..=85 => Step::Diff {
            host: random.below(60),
            from: random.below(10_000),
            to: random.below(10_000),
            disk: random.below(60),
        },
        86..=89 => Step::Export {
            point: random.below(10_000),
            disk: random.below(60),
            draw: random.below(1_000_000),
        },
        90 => Step::Verify {
            points: random.below(12),
        },
        91..=94 => Step::Reopen {
            host: random.below(60),
        },
        95..=97 => Step::LoseCache {
            host: random.below(60),
        },
        _ => Step::Checkpoint,
    }
}

/// Sizes at which something ends: blocks, leaves of 4 MiB, spans of 64 MiB, inner pages of 1 GiB.
fn size(random: &mut Random) -> u64 {
    let size = match random.below(24) {
        0 => 0,
        1 => random.below(5000),
        2..=7 => random.below(3 * MIB),
        8..=17 => 2 * MIB + random.below(12 * MIB),
        18..=20 => 4 * MIB * (1 + random.below(3)),
        21 | 22 => 60 * MIB + random.below(12 * MIB),
        _ => 1020 * MIB + random.below(8 * MIB),
    };
    match random.below(3) {
        0 => size,
        1 => size / 512 * 512,
        _ => size / 4096 * 4096,
    }
}

fn place(random: &mut Random) -> Place {
    let grid = match random.below(6) {
        0 => Some(4 * MIB),
        1 => Some(64 * MIB),
        2 => Some(64 * KIB),
        _ => None,
    };
    Place {
        number: random.below(1 << 40),
        grid,
        back: random.below(3) * random.below(40 * KIB),
        aligned: !random.one_in(4),
    }
}

fn length(random: &mut Random) -> u64 {
    match random.below(10) {
        0 => 1 + random.below(600),
        1..=4 => 4096 * (1 + random.below(12)),
        5 | 6 => 1 + random.below(200 * KIB),
        7 | 8 => 64 * KIB * (1 + random.below(6)),
        _ => random.below(2 * MIB),
    }
}

fn fill(random: &mut Random) -> Fill {
    match random.below(8) {
        0..=2 => Fill::Noise(random.below(1_000_000)),
        3 | 4 => Fill::Text(random.below(1_000_000)),
        5 | 6 => Fill::Shared(random.below(12)),
        _ => Fill::Byte(random.of(&[1, 0xff])),
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {:?}", self.seed, self.chunker)?;
        if self.one_fault_in > 0 {
            write!(
                f,
                "; one call to the store in {} goes wrong",
                self.one_fault_in
            )?;
        }
        for (number, step) in &self.steps {
            write!(f, "\n{number:5}. {step:?}")?;
        }
        Ok(())
    }
}
