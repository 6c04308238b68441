//! Who is compared, and how each is called.

use super::child;
use super::{Figure, Workload};
use crate::image::Image;
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The threads that limits are given: what the smallest hosts have.
const THREADS: &str = "2";

const PASSWORD: &str = "bench";

/// A program under measurement.
pub(super) enum Contender {
    Tidegate { program: PathBuf },
    Restic { program: PathBuf },
    Rustic { program: PathBuf },
    BorgFixed { program: PathBuf },
    Borg { program: PathBuf },
    Desync { program: PathBuf },
    Zstd,
    Blake3,
    Unzstd,
    Copy,
}

/// The files of one contender in one run.
pub(super) struct Place {
    folder: PathBuf,
    bucket: Option<Bucket>,
}

/// A place on an S3 server.
#[derive(Clone)]
pub(super) struct Bucket {
    pub(super) endpoint: String,
    pub(super) name: String,
    pub(super) prefix: String,
    pub(super) access_key: String,
    pub(super) secret_key: String,
}

impl Place {
    pub(super) fn in_folder(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            bucket: None,
        }
    }

    /// The repository is in the bucket, the rest in the folder.
    pub(super) fn in_bucket(folder: &Path, bucket: Bucket) -> Self {
        Self {
            folder: folder.to_owned(),
            bucket: Some(bucket),
        }
    }

    pub(super) fn repository_folder(&self) -> PathBuf {
        self.folder.join("repository")
    }

    /// The image at the place where its machine's disk always is: another generation replaces it.
    pub(super) fn machine(&self, name: &str, image: &Image) -> Result<PathBuf> {
        let path = self.folder.join(format!("{name}.raw"));
        if path.exists() {
            std::fs::remove_file(&path)?;
        }
        std::fs::hard_link(image.path(), &path)
            .with_context(|| format!("link {}", path.display()))?;
        Ok(path)
    }

    /// A path or URL, with `scheme` before the bucket's.
    fn location(&self, scheme: &str) -> String {
        match &self.bucket {
            None => self.repository_folder().display().to_string(),
            Some(bucket) => format!(
                "{scheme}{}/{}/{}",
                bucket.endpoint, bucket.name, bucket.prefix
            ),
        }
    }
}

impl Contender {
    /// In the order of the table.
    pub(super) fn all(tidegate: Option<&Path>, peers: Option<&Path>) -> Result<Vec<Self>> {
        let program = match tidegate {
            Some(program) => std::path::absolute(program)?,
            None => std::env::current_exe()?.with_file_name("tidegate"),
        };
        ensure!(
            program.is_file(),
            "{} is not there: build it by cargo build --release -p tidegate-tools, or name it by --tidegate",
            program.display()
        );
        let mut all = vec![Self::Tidegate { program }];
        if let Some(folder) = peers {
            let folder = std::path::absolute(folder)?;
            let found = |name: &str| {
                let program = folder.join(name);
                if program.is_file() {
                    return Some(program);
                }
                eprintln!("{} is not there: left out", program.display());
                None
            };
            all.extend(found("restic").map(|program| Self::Restic { program }));
            all.extend(found("rustic").map(|program| Self::Rustic { program }));
            if let Some(program) = found("borg") {
                all.push(Self::BorgFixed {
                    program: program.clone(),
                });
                all.push(Self::Borg { program });
            }
            all.extend(found("desync").map(|program| Self::Desync { program }));
        }
        all.extend([Self::Zstd, Self::Blake3, Self::Unzstd, Self::Copy]);
        Ok(all)
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Tidegate { .. } => "tidegate",
            Self::Restic { .. } => "restic",
            Self::Rustic { .. } => "rustic",
            Self::BorgFixed { .. } => "borg, fixed 4 MiB",
            Self::Borg { .. } => "borg",
            Self::Desync { .. } => "desync",
            Self::Zstd => "zstd -1 -T2 (limit)",
            Self::Blake3 => "BLAKE3, 2 threads (limit)",
            Self::Unzstd => "zstd -d > file (limit)",
            Self::Copy => "plain copy, fsync (limit)",
        }
    }

    pub(super) fn explain(&self) -> &'static str {
        match self {
            Self::Tidegate { .. } => {
                "`tidegate backup`, `tidegate restore` to a new raw file, which is durable when the command \
                 ends; default settings."
            }
            Self::Restic { .. } => {
                "`restic backup --no-scan`, unchanged with `--force`, `restic restore --sparse`; default \
                 settings."
            }
            Self::Rustic { .. } => {
                "`rustic backup`, unchanged with `--force`, `rustic restore`; default settings."
            }
            Self::BorgFixed { .. } => {
                "`borg create --sparse --chunker-params=fixed,4194304 -C zstd,3`, unchanged with \
                 `--files-cache=disabled`, `borg extract --sparse`; repokey-blake2."
            }
            Self::Borg { .. } => {
                "`borg create -C zstd,3` with the default chunker, the rest as before."
            }
            Self::Desync { .. } => {
                "`desync make`, `desync extract`; default settings: 64 KiB chunks, zstd, no encryption."
            }
            Self::Zstd => "`zstd -1 -T2` over the first generation's blocks that are not zero.",
            Self::Blake3 => {
                "BLAKE3 of the last generation's allocated extents by two threads, MiB by MiB: \
                 reading and hashing, the least an unchanged image costs."
            }
            Self::Unzstd => {
                "`zstd -dc` of the last generation's blocks that are not zero into a new file, which is not \
                 synced."
            }
            Self::Copy => {
                "the last generation's allocated extents copied into a new sparse file by one thread, \
                 then fsync."
            }
        }
    }

    pub(super) fn is_peer(&self) -> bool {
        self.keeps_a_repository() && !matches!(self, Self::Tidegate { .. })
    }

    /// Limits keep none.
    pub(super) fn keeps_a_repository(&self) -> bool {
        !matches!(self, Self::Zstd | Self::Blake3 | Self::Unzstd | Self::Copy)
    }

    pub(super) fn speaks_s3(&self) -> bool {
        matches!(
            self,
            Self::Tidegate { .. } | Self::Restic { .. } | Self::Rustic { .. } | Self::Desync { .. }
        )
    }

    /// The version as the program itself states it.
    pub(super) fn version(&self) -> Result<Option<String>> {
        let (program, argument) = match self {
            Self::Tidegate { program } | Self::Rustic { program } | Self::BorgFixed { program } => {
                (program.as_path(), "--version")
            }
            Self::Restic { program } => (program.as_path(), "version"),
            Self::Zstd => (Path::new("zstd"), "--version"),
            // Does not say.
            Self::Desync { .. } => return Ok(Some("desync of Debian sid".to_owned())),
            _ => return Ok(None),
        };
        let mut command = Command::new(program);
        command.arg(argument);
        let (_, output) = child::run(command)?;
        Ok(output
            .lines()
            .next()
            .map(|line| line.trim_matches(['*', ' ']).to_owned()))
    }

    /// Makes a new repository, before any clock runs.
    pub(super) fn init(&self, place: &Place) -> Result<()> {
        let mut command = self.program(place)?;
        match self {
            Self::Tidegate { .. } => {
                command.arg("init").arg("--repo").arg(self.location(place));
                command.arg("--keys").arg(place.folder.join("keys"));
            }
            Self::Restic { .. } => {
                command.arg("init");
            }
            Self::Rustic { .. } => {
                command.arg("init");
            }
            Self::BorgFixed { .. } | Self::Borg { .. } => {
                command.args(["init", "--encryption", "repokey-blake2"]);
                command.arg(place.repository_folder());
            }
            Self::Desync { .. } => {
                if place.bucket.is_none() {
                    std::fs::create_dir(place.repository_folder())?;
                }
                return Ok(());
            }
            _ => return Ok(()),
        }
        child::run(command)?;
        Ok(())
    }

    /// Backs the image at `machine` up; `in_full`: reads it also where its size and times are known.
    pub(super) fn backup(&self, place: &Place, machine: &Path, in_full: bool) -> Result<Command> {
        let mut command = self.program(place)?;
        let name = machine.file_name().context("an image has a name")?;
        match self {
            // Reads all of it whenever nobody tracks changes.
            Self::Tidegate { .. } => {
                command.arg("backup").arg(machine);
                command.arg("--repo").arg(self.location(place));
                command
                    .arg("--key")
                    .arg(place.folder.join("keys/restore.key"));
            }
            Self::Restic { .. } => {
                command.args(["backup", "--no-scan"]);
                command.args(in_full.then_some("--force"));
                // By name inside its folder, so that it is restored by name, too.
                command.current_dir(&place.folder).arg(name);
            }
            Self::Rustic { .. } => {
                command.arg("backup").args(in_full.then_some("--force"));
                command.arg(machine);
            }
            Self::BorgFixed { .. } | Self::Borg { .. } => {
                command.args(["create", "--compression", "zstd,3"]);
                if matches!(self, Self::BorgFixed { .. }) {
                    command.args(["--sparse", "--chunker-params=fixed,4194304"]);
                }
                command.args(in_full.then_some("--files-cache=disabled"));
                let archive = format!("{}::{{now:%s.%f}}", place.repository_folder().display());
                command.current_dir(&place.folder).arg(archive).arg(name);
            }
            Self::Desync { .. } => {
                command.args(["make", "--store"]).arg(self.location(place));
                command.arg(machine.with_extension("caibx")).arg(machine);
            }
            _ => bail!("{} backs nothing up", self.name()),
        }
        Ok(command)
    }

    /// Restores what was backed up last, and says where to.
    pub(super) fn restore(&self, place: &Place, machine: &Path) -> Result<(Command, PathBuf)> {
        let mut command = self.program(place)?;
        let name = machine.file_name().context("an image has a name")?;
        let folder = place.folder.join("restored");
        std::fs::create_dir(&folder)?;
        let restored = folder.join(name);
        match self {
            Self::Tidegate { .. } => {
                let stem = machine.file_stem().context("an image has a name")?;
                command
                    .arg("restore")
                    .arg(format!("{}@latest", stem.display()));
                command.arg("--to").arg(&restored);
                command.arg("--repo").arg(self.location(place));
                command
                    .arg("--key")
                    .arg(place.folder.join("keys/restore.key"));
            }
            Self::Restic { .. } => {
                command.args(["restore", "latest", "--sparse", "--target"]);
                command.arg(&folder);
            }
            Self::Rustic { .. } => {
                command.arg("restore");
                command
                    .arg(format!("latest:{}", machine.display()))
                    .arg(&restored);
            }
            Self::BorgFixed { .. } | Self::Borg { .. } => {
                let mut list = self.program(place)?;
                list.args(["list", "--last", "1", "--format", "{archive}"]);
                list.arg(place.repository_folder());
                let (_, archive) = child::run(list)?;
                command.args(["extract", "--sparse"]);
                let repository = place.repository_folder();
                command.arg(format!("{}::{}", repository.display(), archive.trim()));
                command.current_dir(&folder);
            }
            Self::Desync { .. } => {
                command
                    .args(["extract", "--store"])
                    .arg(self.location(place));
                command.arg(machine.with_extension("caibx")).arg(&restored);
            }
            _ => bail!("{} restores nothing", self.name()),
        }
        Ok((command, restored))
    }

    /// What a limit limits, how it is taken, and the file it leaves.
    pub(super) fn limit(
        &self,
        workload: &Workload,
        place: &Place,
    ) -> Result<(Figure, Command, PathBuf)> {
        let last = workload.generations.last().context("no generations")?;
        let result = place.folder.join("result");
        let own = || Ok::<_, anyhow::Error>(Command::new(std::env::current_exe()?));
        let (figure, command) = match self {
            Self::Zstd => {
                let mut command = Command::new("zstd");
                command.args(["-1", "-T2", "-q", "-o"]).arg(&result);
                command.arg(&workload.first_nonzero);
                (Figure::First, command)
            }
            Self::Blake3 => {
                let mut command = own()?;
                command.arg("limit-hash").arg(last.path());
                command.args(["--threads", THREADS]);
                (Figure::Unchanged, command)
            }
            Self::Unzstd => {
                let mut command = Command::new("sh");
                command.args(["-c", "exec zstd -dcq \"$0\" > \"$1\""]);
                command.arg(&workload.last_nonzero_zst).arg(&result);
                (Figure::Restore, command)
            }
            Self::Copy => {
                let mut command = own()?;
                command.arg("limit-copy").arg(last.path()).arg(&result);
                (Figure::Restore, command)
            }
            _ => bail!("{} is no limit", self.name()),
        };
        Ok((figure, command, result))
    }

    fn location(&self, place: &Place) -> String {
        match (self, &place.bucket) {
            (Self::Tidegate { .. }, Some(bucket)) => {
                format!("s3://{}/{}", bucket.name, bucket.prefix)
            }
            (Self::Desync { .. }, _) => place.location("s3+"),
            _ => place.location("s3:"),
        }
    }

    /// The program with its caches and secrets in the run's own folder, and none of this process's.
    fn program(&self, place: &Place) -> Result<Command> {
        let (Self::Tidegate { program }
        | Self::Restic { program }
        | Self::Rustic { program }
        | Self::BorgFixed { program }
        | Self::Borg { program }
        | Self::Desync { program }) = self
        else {
            bail!("{} is no program", self.name());
        };
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            let foreign = ["TIDEGATE_", "RESTIC_", "RUSTIC_", "BORG_", "AWS_", "S3_"];
            if foreign.iter().any(|prefix| name.starts_with(prefix)) {
                command.env_remove(name.as_ref());
            }
        }
        command
            .env("HOME", &place.folder)
            .env("XDG_CACHE_HOME", place.folder.join("cache"))
            .env("XDG_STATE_HOME", place.folder.join("state"))
            .env("XDG_CONFIG_HOME", place.folder.join("config"));
        if let Some(bucket) = &place.bucket {
            command
                .env("AWS_ENDPOINT_URL", &bucket.endpoint)
                .env("AWS_REGION", "us-east-1")
                .env("AWS_ACCESS_KEY_ID", &bucket.access_key)
                .env("AWS_SECRET_ACCESS_KEY", &bucket.secret_key)
                .env("S3_REGION", "us-east-1")
                .env("S3_ACCESS_KEY", &bucket.access_key)
                .env("S3_SECRET_KEY", &bucket.secret_key);
        }
        match self {
            Self::Restic { .. } => {
                command
                    .env("RESTIC_PASSWORD", PASSWORD)
                    .env("RESTIC_REPOSITORY", self.location(place));
            }
            Self::Rustic { .. } => {
                command.env("RUSTIC_PASSWORD", PASSWORD);
                match &place.bucket {
                    None => command.env("RUSTIC_REPOSITORY", place.repository_folder()),
                    Some(bucket) => command
                        .env("RUSTIC_REPOSITORY", "opendal:s3")
                        .env("OPENDAL_ENDPOINT", &bucket.endpoint)
                        .env("OPENDAL_BUCKET", &bucket.name)
                        .env("OPENDAL_ROOT", format!("/{}", bucket.prefix))
                        .env("OPENDAL_REGION", "us-east-1")
                        .env("OPENDAL_ACCESS_KEY_ID", &bucket.access_key)
                        .env("OPENDAL_SECRET_ACCESS_KEY", &bucket.secret_key),
                };
            }
            Self::BorgFixed { .. } | Self::Borg { .. } => {
                command
                    .env("BORG_PASSPHRASE", PASSWORD)
                    .env("BORG_BASE_DIR", place.folder.join("borg"));
            }
            _ => {}
        }
        Ok(command)
    }
}
