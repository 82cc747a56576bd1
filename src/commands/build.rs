//! `omexc build`: files in, plan out, around the pure pipeline.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use omex_codegen::Unsupported;
use omex_compiler::container::{self, RamLimit, RamOrigin, Task, ValidateOptions};
use omex_compiler::diagnostic::{Code, Diagnostic, Severity, quoted};
use omex_compiler::emit::PackedModel;
use omex_compiler::import::MappedFile;
use omex_compiler::import::family::ModelConfig;
use omex_compiler::import::gguf::Gguf;
use omex_compiler::import::pack::{self, Progress as Packing, Source};
use omex_compiler::paging::Frames;
use omex_compiler::pipeline::{self, Compiled, Inputs, Options, Paging, WeightsFrom};
use omex_compiler::prompt;
use omex_compiler::registry::ResolvedModel;
use omex_compiler::tokenizer::{self, Vocabulary};
use omex_compiler::work::{Watch, Work, watched};
use omex_grammar::quantity;
use omex_kernels::spec::KvFormat;
use omex_plan::WeightSource;
use omex_plan::file::{self, Arch, HEADER_BYTES, Image};
use omex_plan::prompt::PromptTemplate;
use omex_plan::task::NodeKind;
use omex_runtime::os::file::{AtomicFile, is_same, require_writable};
use omex_runtime::tokenizer::Tokenizer;
use omex_runtime::{TrustStore, frames_file_name, packed_file_name};
use serde_json::json;

use super::container::{ContainerText, read};
use super::output::{Failure, Output, Progress, bytes, cannot_write};
use super::plan_file::PlanFile;
use super::sign::Signer;
use super::timings::Timings;
use super::{emit, model, places, targets};

/// What a plan is compiled from and for.
#[derive(Clone, Debug, Args)]
pub struct CompileArgs {
    /// Device to compile for: a profile's name or file; the container's or the host without it
    #[arg(long, visible_alias = "profile", env = "OMEX_TARGET")]
    target: Option<String>,
    /// RAM of the whole process, e.g. 1200MiB
    #[arg(long, value_parser = ram)]
    ram: Option<u64>,
    #[command(flatten)]
    model: model::ModelArgs,
    /// Positions of the KV cache
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..))]
    ctx_size: Option<u32>,
    /// Prompt tokens of one pass
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65536))]
    ubatch_size: Option<u32>,
    /// Threads that the plan has memory for
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads_max: Option<u32>,
    /// Windows of one node that go through each layer together; by the budget
    /// without it
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    parallel: Option<u32>,
    /// Where weights come from; by the budget without it
    #[arg(long, value_enum)]
    weights: Option<WeightsArg>,
    /// Bytes of one read of pages, at most
    #[arg(long, value_parser = ram, hide = true)]
    page_read: Option<u64>,
    /// Bytes of the slots that pages come and go in, at most
    #[arg(long, value_parser = ram, hide = true)]
    page_slots: Option<u64>,
    /// How keys and values are kept: it changes results, so nothing chooses
    /// another than f16 but this
    #[arg(long, value_enum, default_value_t = Kv::F16)]
    kv: Kv,
    /// Threads to build with
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    jobs: Option<u32>,
    /// Unknown fields and replaced runners are errors
    #[arg(long)]
    strict: bool,
    /// Paths may leave the working directory
    #[arg(long)]
    any_path: bool,
}

#[derive(Clone, Debug, Args)]
pub struct BuildArgs {
    /// The container, or - for standard input
    container: PathBuf,
    #[command(flatten)]
    compile: CompileArgs,
    /// Where the plan goes
    #[arg(short, long, default_value = "plan.bin")]
    output: PathBuf,
    /// Print stages as text: graph, schedule, arena, paging, clif, asm, plan
    #[arg(long, value_delimiter = ',')]
    emit: Vec<emit::Stage>,
    /// Put the packed model into the plan
    #[arg(long)]
    bundle: bool,
    /// Sign the plan for devices that trust the key; without a file the key
    /// that is kept beside the trust lists, made at its first use
    #[arg(long, value_name = "KEYFILE", num_args = 0..=1, require_equals = true)]
    sign: Option<Option<PathBuf>>,
    /// Print one JSON object about the plan
    #[arg(long)]
    json: bool,
    /// Show how long each part of the build takes
    #[arg(long)]
    timings: bool,
    /// Keep the plan in the cache under the hash of all it depends on, and
    /// print its path
    #[arg(long, hide = true)]
    cached: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum WeightsArg {
    /// Map the packed model
    Mapped,
    /// Read all of it at load
    Read,
    /// Keep what fits and read the rest for every token
    Paged,
}

impl From<WeightsArg> for WeightsFrom {
    fn from(arg: WeightsArg) -> WeightsFrom {
        match arg {
            WeightsArg::Mapped => WeightsFrom::Mapped,
            WeightsArg::Read => WeightsFrom::Read,
            WeightsArg::Paged => WeightsFrom::Paged,
        }
    }
}

impl CompileArgs {
    fn paging(&self) -> Paging {
        let default = Paging::default();
        Paging {
            read_bytes_max: self.page_read.unwrap_or(default.read_bytes_max),
            slots_bytes_max: self.page_slots.unwrap_or(default.slots_bytes_max),
            ..default
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kv {
    F16,
    /// Blocks of 32 int8 with a scale
    Q8,
}

impl From<Kv> for KvFormat {
    fn from(kv: Kv) -> KvFormat {
        match kv {
            Kv::F16 => KvFormat::F16,
            Kv::Q8 => KvFormat::Q8,
        }
    }
}

fn ram(text: &str) -> Result<u64, String> {
    quantity::parse_bytes(text).map_err(|e| e.to_string())
}

/// A task whose container is valid and buildable.
pub(crate) struct Prepared {
    pub(crate) text: ContainerText,
    pub(crate) task: Task,
}

/// Reads and validates the container; findings go to standard error.
pub(crate) fn prepare(
    path: &Path,
    options: &ValidateOptions,
    output: &Output,
) -> Result<Prepared, Failure> {
    let mut text = read(path)?;
    let content = std::mem::take(&mut text.bytes);
    let (task, findings) = container::validate(&text.name, content, options);
    let Some(task) = task else {
        return Err(findings.into());
    };
    output.diagnostics(&findings);
    let missing = task.require_supported();
    if missing.iter().any(Diagnostic::is_error) {
        return Err(missing.into());
    }
    output.diagnostics(&missing);
    Ok(Prepared { text, task })
}

pub fn build(args: &BuildArgs, output: &Output) -> Result<(), Failure> {
    if args.cached {
        // Whoever waits for the plan may end before; elsewhere the build goes on.
        let term = Some(rustix::process::Signal::TERM);
        let _ = rustix::process::set_parent_process_death_signal(term);
    }
    if args.output == Path::new("-") && !args.cached {
        let message = "a plan is a file, with others beside it: name it with -o";
        return Err(Diagnostic::error(Code::Usage, message).into());
    }
    let mut request = Request::new(&args.container, &args.compile, output)?;
    let signer = signer(args)?;
    let destination = if args.cached {
        // It is built to run here.
        if let Some(why) = omex_runtime::unsuitable(&request.target.plan) {
            return Err(Diagnostic::error(Code::FeatureMissing, why).into());
        }
        let plan = request.cached_plan(args.bundle)?;
        if request.is_complete(&plan, args.bundle) {
            return print_path(&plan);
        }
        plan
    } else {
        args.output.clone()
    };

    if args.bundle && request.task.model.compress.is_some_and(|c| c.value) {
        crate::tell!("note: a plan with its model inside reads no compressed pages");
        request.task.model.compress = None;
    }
    if let Some(folder) = destination.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| cannot_write("plan", &destination, e))?;
    }
    let signature = signer.is_some().then(|| Signer::path(&destination));
    for path in [Some(&destination), signature.as_ref()]
        .into_iter()
        .flatten()
    {
        require_writable(path).map_err(|e| cannot_write("plan", path, e))?;
        request.require_apart(&args.container, "plan", path)?;
    }
    let timings = Timings::default();
    let built = request.compile(&timings, output)?;
    for node in &built.compiled.plan.program.nodes {
        if let NodeKind::Merge { outputs } = &node.kind {
            for name in outputs {
                request.require_apart(&args.container, "output", Path::new(name))?;
            }
        }
    }
    let packed_path = built.packed.path.clone();
    let bundle = args.bundle.then_some(packed_path.as_path());
    let header = watched(&timings, Work::Writing, || {
        write_plan(&built, bundle, &destination)
    })?;
    if !built.compiled.code.is_empty() {
        // What was built here may run here.
        TrustStore::new(places()?.trust).add_plan(&header)?;
    }
    if let Some(signer) = &signer {
        signer.sign(&destination)?;
    }
    for stage in &args.emit {
        let text = emit::text(*stage, &built.compiled, &request.target.isa);
        std::io::stdout().write_all(text.as_bytes())?;
    }
    if args.cached {
        return print_path(&destination);
    }
    report(args, &built, &destination, signer.as_ref(), &timings)
}

/// A valid task with its target, model and cache.
struct Request<'a> {
    args: &'a CompileArgs,
    text: ContainerText,
    task: Task,
    target: targets::Resolved,
    model: ResolvedModel,
    cache: PathBuf,
}

/// Compiles a container without writing a plan. `files` will be written.
pub fn compile(
    container: &Path,
    args: &CompileArgs,
    files: &[&Path],
    output: &Output,
) -> Result<Built, Failure> {
    let request = Request::new(container, args, output)?;
    for file in files {
        request.require_apart(container, "file", file)?;
    }
    request.compile(&(), output)
}

/// The finding on a `what` whose path is that of the `source`.
pub fn would_replace(what: &str, path: &Path, source: &str) -> Diagnostic {
    let message = format!("this {what} would replace the {source}");
    Diagnostic::error(Code::FileWrite, message).in_file(path.to_string_lossy(), None)
}

fn signer(args: &BuildArgs) -> Result<Option<Signer>, Failure> {
    let path = match &args.sign {
        None => return Ok(None),
        Some(Some(path)) => path.clone(),
        Some(None) => places()?.trust.join("signing.key"),
    };
    Signer::open(&path).map(Some)
}

fn print_path(path: &Path) -> Result<(), Failure> {
    use std::os::unix::ffi::OsStrExt;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(path.as_os_str().as_bytes())?;
    stdout.write_all(b"\n")?;
    Ok(())
}

/// The container's cache directory, else the user's.
fn cache_folder(args: &CompileArgs, task: &Task) -> Result<PathBuf, Failure> {
    if let Some(folder) = &args.model.cache_dir {
        return Ok(folder.clone());
    }
    match &task.storage.local_cache_dir {
        Some(folder) => Ok(PathBuf::from(&folder.value)),
        None => Ok(places()?.cache),
    }
}

impl<'a> Request<'a> {
    fn new(
        container: &Path,
        args: &'a CompileArgs,
        output: &Output,
    ) -> Result<Request<'a>, Failure> {
        let options = ValidateOptions {
            strict: args.strict,
            any_path: args.any_path,
        };
        let Prepared { text, task } = prepare(container, &options, output)?;
        if args.target.is_none()
            && let Some(unknown) = task.unknown_device(Severity::Error)
        {
            return Err(unknown.into());
        }
        let profile = task.device_profile.as_ref().map(|p| p.value.as_str());
        Ok(Request {
            target: targets::resolve(args.target.as_deref().or(profile))?,
            model: model::resolve(&args.model, &task, &text)?,
            cache: cache_folder(args, &task)?,
            args,
            text,
            task,
        })
    }

    /// Checks that `path`, the name of a `what`, is not that of a file which it is made of.
    fn require_apart(&self, container: &Path, what: &str, path: &Path) -> Result<(), Failure> {
        for (name, source) in [("container", container), ("model", &self.model.path)] {
            if is_same(path, source) {
                return Err(would_replace(what, path, name).into());
            }
        }
        Ok(())
    }

    /// Where `omex execute` keeps the plan: its name is the hash of everything
    /// that the plan's bytes depend on. The model file counts by its stamp,
    /// which any writer changes; this program by its own.
    fn cached_plan(&self, bundle: bool) -> Result<PathBuf, Failure> {
        use std::os::unix::fs::MetadataExt;
        let stamp = |path: &Path| -> Result<String, Failure> {
            let m = std::fs::metadata(path).map_err(|e| {
                let message = format!("the file cannot be read: {e}");
                Diagnostic::error(Code::FileRead, message).in_file(path.to_string_lossy(), None)
            })?;
            let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            let modified = (m.mtime(), m.mtime_nsec());
            // Writers may set the one, but not the other.
            let changed = (m.ctime(), m.ctime_nsec());
            Ok(format!(
                "{path:?} {} {} {modified:?} {changed:?}",
                m.ino(),
                m.len()
            ))
        };
        let program = std::env::current_exe().map_err(|e| {
            Diagnostic::error(Code::FileRead, format!("this program cannot be found: {e}"))
        })?;
        let args = self.args;
        let settings = (
            args.ram,
            args.ctx_size,
            args.ubatch_size,
            args.parallel,
            args.threads_max,
            args.weights,
            (args.page_read, args.page_slots),
            args.kv,
            bundle,
        );
        let mut hasher = blake3::Hasher::new();
        for part in [
            self.task.source.text(),
            &format!("{:?}", self.text.folder),
            &stamp(&self.model.path)?,
            &stamp(&program)?,
            &format!("{:?}", self.target),
            &format!("{settings:?}"),
        ] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let name = hasher.finalize().to_hex();
        Ok(self.cache.join("plans").join(format!("{name}.bin")))
    }

    /// Whether a plan of the cache can run: it is sound, and the files that it reads
    /// are there.
    fn is_complete(&self, plan: &Path, bundle: bool) -> bool {
        let Ok(file) = PlanFile::open(plan) else {
            return false;
        };
        let weights = &file.plan.plan().weights;
        let packed = (!bundle).then(|| packed_file_name(&weights.packed_digest));
        let frames = match &weights.source {
            WeightSource::Paged(paged) if paged.stages.is_some() => {
                Some(frames_file_name(&weights.packed_digest))
            }
            WeightSource::Mapped | WeightSource::Read { .. } | WeightSource::Paged(_) => None,
        };
        let mut needed = packed.into_iter().chain(frames);
        needed.all(|name| self.cache.join(name).is_file())
    }

    fn compile(&self, watch: &dyn Watch, output: &Output) -> Result<Built, Failure> {
        let (args, target) = (self.args, &self.target);
        let path = self.model.path.as_path();
        let file = MappedFile::open(path)?;
        watch.begin(Work::Model);
        let gguf = Gguf::parse(&file).map_err(|e| e.in_file(path))?;
        let config = ModelConfig::from_gguf(&gguf).map_err(|e| e.in_file(path))?;
        watch.end();
        let facts = model::facts(&config);
        let findings = self.task.check_model(&facts, self.model.quantization);
        if findings.iter().any(Diagnostic::is_error) {
            return Err(findings.into());
        }
        output.diagnostics(&findings);

        watch.begin(Work::Tokenizer);
        let vocabulary = Vocabulary::from_gguf(&gguf).map_err(|e| e.in_file(path))?;
        let tables = tokenizer::compile(&vocabulary).map_err(|e| e.in_file(path))?;
        let tokenizer = Tokenizer::from_bytes(&tables)
            .unwrap_or_else(|e| panic!("the tokenizer that was compiled does not load: {e}"));
        let prompts = prompts(&self.task, &vocabulary, &tokenizer, path)?;
        let end_tokens: Vec<u32> = tokenizer.end_of_generation().collect();
        watch.end();

        let order = config.weights.in_schedule_order();
        let source = Source {
            file: &file,
            gguf: &gguf,
        };
        let compress = self.task.model.compress.is_some_and(|c| c.value);
        let packed = || packed(&source, &order, &self.cache, args.jobs, compress);
        let (packed, frames) = watched(watch, Work::Packing, packed)?;
        let name = config.name.clone().unwrap_or_else(|| {
            let stem = path.file_stem().unwrap_or_default();
            stem.to_string_lossy().into_owned()
        });

        let code_of =
            |spec: &omex_kernels::KernelSpec| match omex_codegen::compile(spec, &target.isa) {
                Ok(blob) => Some(blob.code),
                Err(Unsupported::Operation | Unsupported::NeedsFeature(_)) => None,
                Err(Unsupported::Invalid(why)) => panic!("select made an invalid kernel: {why}"),
            };
        let mut limits = target.limits.clone();
        limits.extend(args.ram.map(|bytes| RamLimit {
            bytes,
            origin: RamOrigin::Flag,
        }));
        let inputs = Inputs {
            task: &self.task,
            model_name: &name,
            model: &config,
            packed: PackedModel {
                index: &packed.index,
                digest: packed.digest,
                file_bytes: packed.file_bytes,
            },
            tokenizer: &tables,
            end_tokens: &end_tokens,
            prompts: &prompts,
            target: &target.plan,
            device: target.device,
            storage_bytes_per_s: target.storage_bytes_per_s,
            memory_bytes_per_s: target.memory_bytes_per_s,
            macs_per_s: target.macs_per_s,
            frames: frames.as_ref().map_or_else(Frames::default, |file| Frames {
                of_pages: file.frames.clone(),
                file_bytes: file.file_bytes,
                pages_bytes_per_s: target.zstd_bytes_per_s,
            }),
            code_of: &code_of,
            watch,
        };
        let options = Options {
            context: args.ctx_size,
            columns_max: args.ubatch_size,
            sequences_max: args.parallel,
            threads_max: args.threads_max,
            limits,
            weights: args.weights.map(WeightsArg::into),
            paging: args.paging(),
            kv: args.kv.into(),
        };
        let compiled = pipeline::compile(&inputs, &options)?;
        output.diagnostics(&compiled.warnings);
        Ok(Built {
            compiled,
            packed,
            frames: frames.map(|file| file.path),
            arch: target.arch,
            tokenizer: tables,
        })
    }
}

/// A compiled task and the packed model that it runs on.
pub struct Built {
    pub compiled: Compiled,
    pub tokenizer: Vec<u8>,
    pub packed: pack::PackedModel,
    /// The file of compressed pages, where the container asks for them.
    pub frames: Option<PathBuf>,
    pub arch: Arch,
}

/// The prompt of every inferring node, through the model's chat template.
fn prompts(
    task: &Task,
    vocabulary: &Vocabulary,
    tokenizer: &Tokenizer<'_>,
    path: &Path,
) -> Result<BTreeMap<container::NodeId, PromptTemplate>, Failure> {
    let mut prompts = BTreeMap::new();
    for (id, inference) in task.inferences() {
        let prompt = &inference.prompt;
        let message = format!("{}{{{{input}}}}{}", prompt.before, prompt.after);
        let request = prompt::Request {
            chat_template: vocabulary.chat_template.as_deref().filter(|_| !prompt.raw),
            system: prompt.system.as_deref(),
            message: &message,
            date: task.date,
        };
        let compiled = prompt::compile(vocabulary, tokenizer, &request);
        prompts.insert(id, compiled.map_err(|e| e.in_file(path))?);
    }
    Ok(prompts)
}

fn packed(
    source: &Source<'_>,
    order: &[pack::Part],
    cache: &Path,
    jobs: Option<u32>,
    compress: bool,
) -> Result<(pack::PackedModel, Option<pack::FramesFile>), Failure> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = jobs.map_or(cores, |n| n as usize);
    let line = Progress::new();
    let progress = |event: Packing| {
        line.show(|| match event {
            Packing::Hashing {
                done_bytes,
                total_bytes,
            } => format!(
                "hashing the model: {} of {}",
                bytes(done_bytes),
                bytes(total_bytes)
            ),
            Packing::Waiting => "waiting for another build on this cache".to_owned(),
            Packing::Packing {
                done_bytes,
                total_bytes,
            } => format!(
                "packing the model: {} of {}",
                bytes(done_bytes),
                bytes(total_bytes)
            ),
            Packing::Compressing {
                done_bytes,
                total_bytes,
            } => format!(
                "compressing pages: {} of {}",
                bytes(done_bytes),
                bytes(total_bytes)
            ),
        });
    };
    let packed = pack::pack_into_cache(source, order, cache, threads, &progress);
    let packed = packed.and_then(|packed| {
        let frames =
            compress.then(|| pack::compress_into_cache(&packed, cache, threads, &progress));
        Ok((packed, frames.transpose()?))
    });
    line.clear();
    Ok(packed?)
}

/// Writes the plan under its final name once it is whole, and returns its header.
fn write_plan(built: &Built, bundle: Option<&Path>, to: &Path) -> Result<Vec<u8>, Failure> {
    let pages = match bundle {
        None => None,
        Some(packed) => {
            let mut hasher = blake3::Hasher::new();
            let file = File::open(packed).map_err(|e| cannot_write("plan", packed, e))?;
            hasher
                .update_reader(file)
                .map_err(|e| cannot_write("plan", packed, e))?;
            Some((built.packed.file_bytes, *hasher.finalize().as_bytes()))
        }
    };
    let plan = &built.compiled.plan;
    let Image {
        mut bytes,
        pages_offset: _,
    } = file::encode(
        plan,
        built.arch,
        &built.compiled.code,
        &built.tokenizer,
        pages,
    );
    let write = || -> std::io::Result<()> {
        let mut out = AtomicFile::create(to)?;
        out.write_all(&bytes)?;
        if let Some(packed) = bundle {
            std::io::copy(&mut File::open(packed)?, &mut out)?;
        }
        out.finish()
    };
    write().map_err(|e| cannot_write("plan", to, e))?;
    bytes.truncate(HEADER_BYTES);
    Ok(bytes)
}

fn report(
    args: &BuildArgs,
    built: &Built,
    path: &Path,
    signer: Option<&Signer>,
    timings: &Timings,
) -> Result<(), Failure> {
    let plan = &built.compiled.plan;
    let id = blake3::Hash::from(plan.result_id).to_hex();
    let size = std::fs::metadata(path).map_or(0, |m| m.len());
    if args.json {
        let mut object = json!({
            "schema_version": 1,
            "plan": path,
            "plan_bytes": size,
            "packed_model": built.packed.path,
            "compressed_pages": built.frames,
            "target": plan.target.name,
            "context": plan.model.context,
            "columns_max": plan.columns_max,
            "sequences_max": plan.sequences_max,
            "threads_max": plan.threads_max,
            "arena_bytes": plan.arena_bytes,
            "rss_peak_bytes": plan.memory.rss_peak_bytes(),
            "charge_peak_bytes": plan.memory.charge_peak_bytes(),
            "result_id": id.as_str(),
            "public_key": signer.map(Signer::public_key),
        });
        if args.timings {
            object["timings"] = timings.json();
        }
        writeln!(std::io::stdout(), "{object}")?;
        return Ok(());
    }
    if args.timings {
        crate::tell!("{}", timings.text().trim_end());
    }
    crate::tell!(
        "{}: {} for {}, {} of context, peak memory {} ({} with page tables), result {}",
        quoted(&path.to_string_lossy()),
        bytes(size),
        plan.target.name,
        plan.model.context,
        bytes(plan.memory.rss_peak_bytes()),
        bytes(plan.memory.charge_peak_bytes()),
        &id.as_str()[..16],
    );
    if let Some(signer) = signer {
        let key = signer.public_key();
        crate::tell!("signed; a device runs it after `omex trust add {key}`");
    }
    Ok(())
}
