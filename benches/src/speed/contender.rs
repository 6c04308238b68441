//! Who is compared, and how each is called.

use super::Workload;
use super::child;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The threads that limits are given: what the smallest hosts have.
const THREADS: &str = "2";

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    Backup,
    Unchanged,
    Restore,
}

impl Step {
    pub(super) const ALL: [Self; 3] = [Self::Backup, Self::Unchanged, Self::Restore];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Unchanged => "unchanged",
            Self::Restore => "restore",
        }
    }
}

/// A program under measurement.
pub(super) enum Contender {
    Tidegate { program: PathBuf },
    Restic { program: PathBuf },
    Zstd,
    Blake3,
    Copy,
}

/// The files of one contender in one run.
pub(super) struct Place {
    folder: PathBuf,
    repository: Option<PathBuf>,
    /// The point to restore, once the backup has said its name.
    point: Option<String>,
    restored: Option<PathBuf>,
}

impl Contender {
    /// In the order of the table. A program that is named must be there.
    pub(super) fn all(tidegate: Option<&Path>, restic: Option<&Path>) -> Result<Vec<Self>> {
        let tidegate = match tidegate {
            Some(program) => std::path::absolute(program)?,
            None => std::env::current_exe()?.with_file_name("tidegate"),
        };
        ensure!(
            tidegate.is_file(),
            "{} is not there: build it by cargo build --release -p tidegate-tools, or name it by --tidegate",
            tidegate.display()
        );
        let mut all = vec![Self::Tidegate { program: tidegate }];
        if let Some(program) = restic {
            ensure!(
                program.is_file(),
                "{} is not there: benches/peers fetches it",
                program.display()
            );
            // It runs in the image's folder.
            all.push(Self::Restic {
                program: std::path::absolute(program)?,
            });
        }
        all.extend([Self::Zstd, Self::Blake3, Self::Copy]);
        Ok(all)
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Tidegate { .. } => "tidegate",
            Self::Restic { .. } => "restic",
            Self::Zstd => "zstd -1 -T2 (limit)",
            Self::Blake3 => "BLAKE3, 2 threads (limit)",
            Self::Copy => "plain copy, fsync (limit)",
        }
    }

    pub(super) fn explain(&self) -> &'static str {
        match self {
            Self::Tidegate { .. } => {
                "`tidegate backup` into a new repository, the same once more on the unchanged image, \
                 `tidegate restore` to a new raw file; default settings."
            }
            Self::Restic { .. } => {
                "`restic backup --no-scan`, once more with `--force` (so that it reads the image, as it \
                 does whenever the file's time has changed), `restic restore --sparse`, which \
                 does not sync the image it has written, as the other two do; default settings."
            }
            Self::Zstd => {
                "`zstd -1 -T2` over the image's blocks that are not zero, from file to file."
            }
            Self::Blake3 => {
                "BLAKE3 of the image's allocated extents by two threads, MiB by MiB: reading and \
                 hashing, the least an unchanged image costs."
            }
            Self::Copy => {
                "the allocated extents copied into a new sparse file by one thread, then fsync."
            }
        }
    }

    pub(super) fn steps(&self) -> &'static [Step] {
        match self {
            Self::Tidegate { .. } | Self::Restic { .. } => &Step::ALL,
            Self::Zstd => &[Step::Backup],
            Self::Blake3 => &[Step::Unchanged],
            Self::Copy => &[Step::Restore],
        }
    }

    /// The version as the program itself states it.
    pub(super) fn version(&self) -> Result<Option<String>> {
        let (program, argument) = match self {
            Self::Tidegate { program } => (program.as_path(), "--version"),
            Self::Restic { program } => (program.as_path(), "version"),
            Self::Zstd => (Path::new("zstd"), "--version"),
            Self::Blake3 | Self::Copy => return Ok(None),
        };
        let mut command = Command::new(program);
        command.arg(argument);
        let (_, output) = child::run(command)?;
        Ok(output
            .lines()
            .next()
            .map(|line| line.trim_matches(['*', ' ']).to_owned()))
    }

    /// What is done before the clock runs: a new repository.
    pub(super) fn prepare(&self, workload: &Workload, folder: &Path) -> Result<Place> {
        let mut place = Place {
            folder: folder.to_owned(),
            repository: None,
            point: None,
            restored: None,
        };
        let repository = folder.join("repository");
        match self {
            Self::Tidegate { program } => {
                let mut init = self.program(program, folder);
                init.arg("init").arg("--repo").arg(&repository);
                init.arg("--keys").arg(folder.join("keys"));
                child::run(init)?;
                place.repository = Some(repository);
                place.restored = Some(folder.join("restored.raw"));
            }
            Self::Restic { program } => {
                let mut init = self.program(program, folder);
                init.arg("init").arg("--repo").arg(&repository);
                child::run(init)?;
                place.repository = Some(repository);
                let name = workload.path.file_name().context("an image has a name")?;
                place.restored = Some(folder.join("restored").join(name));
            }
            Self::Zstd => place.repository = Some(folder.join("nonzero.zst")),
            Self::Copy => place.restored = Some(folder.join("restored.raw")),
            Self::Blake3 => {}
        }
        Ok(place)
    }

    /// A step's command line.
    pub(super) fn command(
        &self,
        step: Step,
        workload: &Workload,
        place: &Place,
    ) -> Result<Command> {
        let repository = place.repository.as_deref().unwrap_or(Path::new(""));
        let restored = place.restored.as_deref().unwrap_or(Path::new(""));
        Ok(match self {
            Self::Tidegate { program } => {
                let mut command = self.program(program, &place.folder);
                match step {
                    Step::Backup | Step::Unchanged => {
                        command.arg("backup").arg(&workload.path).arg("--json");
                    }
                    Step::Restore => {
                        let point = place.point.as_ref().context("nothing was backed up")?;
                        command.arg("restore").arg(point).arg("--to").arg(restored);
                    }
                }
                command.arg("--repo").arg(repository);
                command
                    .arg("--key")
                    .arg(place.folder.join("keys/restore.key"));
                command
            }
            Self::Restic { program } => {
                let mut command = self.program(program, &place.folder);
                command.arg("--repo").arg(repository);
                // By name inside its folder, so that it is restored by name, too.
                let folder = workload
                    .path
                    .parent()
                    .context("an image lies in a folder")?;
                let name = workload.path.file_name().context("an image has a name")?;
                command.current_dir(folder);
                match step {
                    Step::Backup => command.args(["backup", "--no-scan"]).arg(name),
                    Step::Unchanged => command.args(["backup", "--no-scan", "--force"]).arg(name),
                    Step::Restore => command
                        .args(["restore", "latest", "--sparse", "--target"])
                        .arg(place.folder.join("restored")),
                };
                command
            }
            Self::Zstd => {
                let mut command = Command::new("zstd");
                command.args(["-1", "-T2", "-q", "-o"]).arg(repository);
                command.arg(&workload.compact);
                command
            }
            Self::Blake3 => {
                let mut command = Command::new(std::env::current_exe()?);
                command
                    .arg("limit-hash")
                    .arg(&workload.path)
                    .args(["--threads", THREADS]);
                command
            }
            Self::Copy => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("limit-copy").arg(&workload.path).arg(restored);
                command
            }
        })
    }

    /// A program with its caches and secrets in the run's own folder.
    fn program(&self, program: &Path, folder: &Path) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("TIDEGATE_") || name.starts_with("RESTIC_") {
                command.env_remove(name.as_ref());
            }
        }
        command
            .env("HOME", folder)
            .env("XDG_CACHE_HOME", folder.join("cache"))
            .env("XDG_STATE_HOME", folder.join("state"))
            .env("XDG_CONFIG_HOME", folder.join("config"));
        if let Self::Restic { .. } = self {
            command
                .env("RESTIC_PASSWORD", "bench")
                .env("RESTIC_CACHE_DIR", folder.join("cache"));
        }
        command
    }
}

impl Place {
    /// Takes from a step's stdout what later steps need.
    pub(super) fn learn(&mut self, contender: &Contender, output: &str) -> Result<()> {
        if !matches!(contender, Contender::Tidegate { .. }) || self.point.is_some() {
            return Ok(());
        }
        #[derive(serde::Deserialize)]
        struct Summary {
            machine: String,
        }
        let summary: Summary = serde_json::from_str(output.trim())
            .with_context(|| format!("the summary of tidegate backup --json: {output}"))?;
        self.point = Some(format!("{}@latest", summary.machine));
        Ok(())
    }

    /// The file that `step` has restored.
    pub(super) fn restored_by(&self, step: Step) -> Option<PathBuf> {
        (step == Step::Restore)
            .then(|| self.restored.clone())
            .flatten()
    }

    /// Where the stored bytes are.
    pub(super) fn repository(&self) -> Option<&Path> {
        self.repository.as_deref()
    }
}
