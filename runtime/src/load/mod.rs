//! From a plan file to a machine that can run: everything is verified before
//! anything of it is executable.

mod code;
mod packed;
mod places;
mod trust;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use omex_cpu as cpu;
use omex_plan::file::{HEADER_BYTES, Header, SectionKind, decode_metadata};
use omex_plan::paging::PagePlan;
use omex_plan::{CheckedPlan, Plan, Target, WeightSource};

use crate::error::RunError;
use crate::exec::{Engine, Machine, SessionMemory};
use crate::memory::{CodeSource, Conditions, allowance_bytes, charge_peak_bytes, rss_peak_bytes};
use crate::os::file::{forget, is_cached, open_regular};
use crate::os::memory::{Frozen, Region, Return};
use crate::os::{memory, process};
use crate::pool::Pool;
use crate::tokenizer::Tokenizer;

pub(crate) use packed::damaged_page;
use packed::{PackedModel, find_frames};
pub use packed::{frames_file_name, packed_file_name};
pub use places::Places;
pub use trust::{TrustStore, TrustedKey};

/// Largest metadata section that is read.
const METADATA_BYTES_MAX: u64 = 256 << 20;

/// Above what a plan needs, this is enough for whatever is read ahead of a program.
const SPARE_BYTES: u64 = 16 << 20;

/// Bytes of the arena that a thread makes resident at once: whole huge pages.
const POPULATE_BYTES: usize = 4 << 20;

/// How to load a plan.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Threads to compute with, at most the plan's `threads_max`; absent:
    /// that, or one per core.
    pub threads: Option<u32>,
    /// Folders that may hold the packed model, besides the plan's own.
    pub model_folders: Vec<PathBuf>,
    /// Signature of the plan; absent: the plan's path with `.sig` appended.
    pub signature: Option<PathBuf>,
    /// What code is trusted; absent: none.
    pub trust: Option<TrustStore>,
    /// Refuse to start when the process uses more than the plan's allowance
    /// for it before anything is loaded.
    pub enforce_allowance: bool,
    /// Record when pages are read and waited for; takes memory beyond the
    /// plan's: [`crate::TIMELINE_BYTES`].
    pub trace: bool,
    /// Pages that come and go are read through io_uring where the system allows
    /// it, without threads of their own.
    pub io_uring: bool,
}

/// A loaded plan.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) engine: Engine,
    pub(crate) memory: SessionMemory,
    /// The tokenizer's tables, which passed its checks.
    pub(crate) tokenizer: Frozen,
}

struct PlanFile<'a> {
    path: &'a Path,
    file: File,
    header_bytes: [u8; HEADER_BYTES],
    header: Header,
    /// The page cache had it before it was read.
    was_cached: bool,
}

impl PlanFile<'_> {
    fn open(path: &Path) -> Result<PlanFile<'_>, RunError> {
        let (file, bytes) = open_regular(path).map_err(RunError::io("open the plan", path))?;
        let was_cached = is_cached(&file, &(0..bytes));
        let mut header_bytes = [0; HEADER_BYTES];
        let start = &mut header_bytes[..bytes.min(HEADER_BYTES as u64) as usize];
        file.read_exact_at(start, 0)
            .map_err(RunError::io("read the plan", path))?;
        let header = Header::parse(start, bytes).map_err(|e| RunError::integrity(path, None, e))?;
        for gap in header.gaps() {
            let mut padding = vec![0; (gap.end - gap.start) as usize];
            file.read_exact_at(&mut padding, gap.start)
                .map_err(RunError::io("read the plan", path))?;
            if padding.iter().any(|&byte| byte != 0) {
                let what = "the padding between sections is not zero";
                return Err(RunError::integrity(path, Some(gap.start), what));
            }
        }
        Ok(PlanFile {
            path,
            file,
            header_bytes,
            header,
            was_cached,
        })
    }

    /// Fills `buffer` with a section, to be verified.
    fn read(&self, kind: SectionKind, buffer: &mut [u8]) -> Result<(), RunError> {
        self.file
            .read_exact_at(buffer, self.header.section(kind).offset)
            .map_err(RunError::io("read the plan", self.path))
    }

    fn verify(&self, kind: SectionKind, bytes: &[u8]) -> Result<(), RunError> {
        let offset = self.header.section(kind).offset;
        let verified = self.header.verify(kind, bytes);
        verified.map_err(|e| RunError::integrity(self.path, Some(offset), e))
    }

    fn plan(&self) -> Result<CheckedPlan, RunError> {
        let section = self.header.section(SectionKind::Metadata);
        let malformed =
            |e: &dyn std::fmt::Display| RunError::integrity(self.path, Some(section.offset), e);
        if section.bytes > METADATA_BYTES_MAX {
            return Err(malformed(&format!(
                "the metadata has {} bytes, more than {METADATA_BYTES_MAX}",
                section.bytes
            )));
        }
        let mut bytes = vec![0; section.bytes as usize];
        self.read(SectionKind::Metadata, &mut bytes)?;
        self.verify(SectionKind::Metadata, &bytes)?;
        let plan = decode_metadata(&bytes).map_err(|e| malformed(&e))?;
        drop(bytes);
        let code_bytes = self.header.section(SectionKind::Code).bytes;
        omex_plan::check(plan, code_bytes).map_err(|e| malformed(&e))
    }

    fn require_machine(&self, plan: &Plan) -> Result<(), RunError> {
        let refuse = |what: String| {
            Err(RunError::Machine {
                path: self.path.to_owned(),
                what,
            })
        };
        if let Some(why) = unsuitable(&plan.target) {
            return refuse(why);
        }
        let (header, metadata) = (self.header.arch.name(), &plan.target.arch);
        if header != metadata {
            return refuse(format!(
                "its header is of a plan for {header}, its metadata of one for {metadata}"
            ));
        }
        if let (
            WeightSource::Paged(PagePlan {
                stages: Some(_), ..
            }),
            false,
        ) = (&plan.weights.source, cfg!(feature = "zstd"))
        {
            return refuse(
                "the plan reads pages compressed with zstd, which this runtime was built \
                 without; rebuild the plan without `compression`"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

/// Why a plan for this target does not run on this machine; `None` where it does.
pub fn unsuitable(target: &Target) -> Option<String> {
    let (name, arch) = (&target.name, &target.arch);
    if arch != cpu::ARCH {
        return Some(format!(
            "a plan for {name} ({arch}) does not run here ({}); build it with `--target host`",
            cpu::ARCH
        ));
    }
    let features = target.features.iter().map(String::as_str);
    let missing: Vec<_> = features.filter(|name| !cpu::has_feature(name)).collect();
    (!missing.is_empty()).then(|| {
        format!(
            "a plan for {name} needs CPU features that this machine lacks: {}; build it with \
             `--target host`",
            missing.join(", ")
        )
    })
}

/// Loads the plan at `path`. Which checks come first is part of the contract:
/// integrity, then the machine, then memory, then code, then weights.
pub(crate) fn load(path: &Path, options: &LoadOptions) -> Result<Loaded, RunError> {
    memory::limit_faults();
    memory::release_unused(Return::Ahead);
    let resident_at_start = process::rss_bytes();
    let file = PlanFile::open(path)?;
    let checked = file.plan()?;
    let plan = checked.plan();
    file.require_machine(plan)?;
    if options.trace && !matches!(plan.weights.source, WeightSource::Paged(_)) {
        return Err(nothing_to_trace());
    }

    // More threads than cores only wait for each other.
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let threads = options.threads.unwrap_or(plan.threads_max.min(cores));
    if !(1..=plan.threads_max).contains(&threads) {
        return Err(RunError::Usage(format!(
            "{threads} threads, but the plan has memory for 1 to {}",
            plan.threads_max
        )));
    }
    let conditions = Conditions {
        code: CodeSource::WORST,
        threads,
        start_text: process::start_text(),
    };
    if options.enforce_allowance {
        require_allowance(plan, conditions, resident_at_start)?;
    }
    require_memory(plan, conditions)?;

    // Threads map memory when they start, which waits for whoever makes some resident:
    // they start beside what one thread does alone.
    let mut pool = Pool::new(threads)
        .map_err(|e| RunError::Memory(format!("cannot start {threads} threads: {e}")))?;
    let code = code::load(&file, plan, options)?;
    let beside = file.path.parent().unwrap_or(Path::new(""));
    let mut folders = vec![beside];
    folders.extend(options.model_folders.iter().map(PathBuf::as_path));
    let model = find_packed(&file, plan, &folders)?;
    let frames = find_frames(plan, &folders)?;

    // Decoding and code generation leave free blocks behind.
    let how = how_to_return(plan, conditions);
    memory::release_unused(how);
    // Pages of the plan that reading it brings to the page cache are charged for until they
    // are forgotten, which has to be before the arena is there.
    let read = || {
        let tokenizer = read_tokenizer(&file);
        if !file.was_cached && file.header.section(SectionKind::Pages).bytes == 0 {
            // Whatever is refused here is only cached for longer.
            let _ = forget(&file.file);
        }
        tokenizer
    };
    let tokenizer = Mutex::new((!file.was_cached).then(read));
    let mut arena = allocate_arena(plan, &mut pool, &|| {
        let mut tokenizer = tokenizer.lock().expect("no other holds it");
        tokenizer.get_or_insert_with(read);
    })?;
    let tokenizer = tokenizer.into_inner().expect("no read panicked");
    let tokenizer = tokenizer.expect("it was read beside the arena")?;
    let tokenizer = (tokenizer.freeze()).map_err(RunError::io("protect the tokenizer", path))?;
    // The other long work, on one thread while the others go on with weights.
    let sound = Mutex::new(Ok(()));
    let beside = || {
        *sound.lock().expect("no other holds it") = check_tokenizer(&file, plan, &tokenizer);
        // The checks are over while weights are still to come.
        memory::release_unused(how);
    };
    let pages = model.load(plan, &mut arena, &mut pool, frames, options, &beside);
    sound.into_inner().expect("no check panicked")?;
    let pages = pages?;
    let mut machine = Machine::new(checked, arena, pages, code.entries, code.keep);
    let memory = machine.take_session_memory();
    let engine = Engine::new(machine, pool);
    memory::release_unused(how);
    Ok(Loaded {
        engine,
        memory,
        tokenizer,
    })
}

pub(crate) fn nothing_to_trace() -> RunError {
    let what = "all pages of this plan stay in memory: a run has no reads to show";
    RunError::Usage(what.to_owned())
}

/// Refuses a runtime that is larger than the one that the plan was made for.
fn require_allowance(plan: &Plan, conditions: Conditions, resident: u64) -> Result<(), RunError> {
    let Some(allowed) = allowance_bytes(plan, conditions).filter(|&most| resident > most) else {
        return Ok(());
    };
    Err(RunError::Memory(format!(
        "the runtime itself already uses {resident} bytes, the plan allows it {allowed}; \
         rebuild the plan with the version of `omexc` that belongs to this runtime"
    )))
}

/// Refuses what would end the process later instead of a call now: touching
/// more memory than there is.
fn require_memory(plan: &Plan, conditions: Conditions) -> Result<(), RunError> {
    let refuse = |needed: u64, why: String| {
        Err(RunError::Memory(format!(
            "the plan needs {needed} bytes, but {why}; rebuild with a smaller --ram, a smaller \
             context or a smaller model"
        )))
    };
    let charge = charge_peak_bytes(plan, conditions);
    if let Some(limit) = process::memory_limit_bytes().filter(|&limit| limit < charge) {
        return refuse(charge, format!("its memory cgroup allows {limit}"));
    }
    let more = rss_peak_bytes(plan, conditions).saturating_sub(process::rss_bytes());
    match process::memory_available_bytes() {
        Some(available) if available < more => {
            refuse(more, format!("only {available} are available"))
        }
        Some(_) | None => Ok(()),
    }
}

/// How pages of the program come back while the plan runs: singly, where they would
/// take the place of others.
fn how_to_return(plan: &Plan, conditions: Conditions) -> Return {
    let is_full = || {
        let most = charge_peak_bytes(plan, conditions).saturating_add(SPARE_BYTES);
        process::memory_limit_bytes().is_some_and(|limit| limit < most)
    };
    match &plan.weights.source {
        WeightSource::Paged(paged) if !paged.reads.is_empty() => Return::Singly,
        WeightSource::Read { .. } | WeightSource::Paged(_) if is_full() => Return::Singly,
        WeightSource::Mapped | WeightSource::Read { .. } | WeightSource::Paged(_) => Return::Ahead,
    }
}

/// The arena, made resident on all threads, one of which does the work `beside` it.
fn allocate_arena(
    plan: &Plan,
    pool: &mut Pool,
    beside: &(dyn Fn() + Sync),
) -> Result<Region, RunError> {
    let needed = plan.arena_bytes;
    let refuse = |why: &dyn std::fmt::Display| {
        RunError::Memory(format!(
            "the plan needs an arena of {needed} bytes, but the system refuses it: {why}"
        ))
    };
    let bytes = usize::try_from(needed).map_err(|e| refuse(&e))?;
    let arena = Region::reserved(bytes).map_err(|e| refuse(&e))?;
    // Threads that need the same huge page would both allocate one, and be
    // charged for it.
    let before = arena.base() as usize % POPULATE_BYTES;
    let refused = Mutex::new(None);
    pool.run(&|team| {
        let parts = (before + bytes).div_ceil(POPULATE_BYTES);
        team.phase(1 + parts as u32, |tile| {
            let Some(part) = tile.checked_sub(1) else {
                beside();
                return true;
            };
            let start = part as usize * POPULATE_BYTES;
            let end = (start + POPULATE_BYTES - before).min(bytes);
            if let Err(e) = arena.populate(start.saturating_sub(before)..end) {
                *refused.lock().expect("no part panicked") = Some(e);
            }
            true
        });
    });
    match refused.into_inner().expect("no part panicked") {
        Some(e) => Err(refuse(&e)),
        None => Ok(arena),
    }
}

/// The tokenizer's tables, to be checked.
fn read_tokenizer(file: &PlanFile<'_>) -> Result<Region, RunError> {
    let section = file.header.section(SectionKind::Tokenizer);
    let mut region = Region::zeroed(section.bytes as usize)
        .map_err(|e| RunError::Memory(format!("no memory for the tokenizer: {e}")))?;
    file.read(SectionKind::Tokenizer, region.bytes_mut())?;
    Ok(region)
}

/// Verifies the tokenizer's tables and checks that they are tables.
fn check_tokenizer(file: &PlanFile<'_>, plan: &Plan, tables: &Frozen) -> Result<(), RunError> {
    file.verify(SectionKind::Tokenizer, tables)?;
    let section = file.header.section(SectionKind::Tokenizer);
    let malformed = |what: String| RunError::integrity(file.path, Some(section.offset), what);
    let tokenizer = Tokenizer::from_bytes(tables).map_err(|e| malformed(e.to_string()))?;
    let (tokens, vocabulary) = (tokenizer.vocabulary_size(), plan.model.vocabulary);
    if tokens != vocabulary {
        return Err(malformed(format!(
            "the tokenizer has {tokens} tokens, the model {vocabulary}"
        )));
    }
    Ok(())
}

fn find_packed(
    file: &PlanFile<'_>,
    plan: &Plan,
    folders: &[&Path],
) -> Result<PackedModel, RunError> {
    let bundle = file.header.section(SectionKind::Pages);
    if bundle.bytes > 0 {
        let clone = file
            .file
            .try_clone()
            .map_err(RunError::io("reopen the plan", file.path))?;
        let part = bundle.offset..bundle.offset + bundle.bytes;
        let model = PackedModel::bundled(file.path, clone, part);
        model.verify(plan)?;
        return Ok(model);
    }
    let model = PackedModel::find(&plan.weights.packed_digest, folders)?;
    model.verify(plan)?;
    Ok(model)
}
