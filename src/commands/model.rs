//! Which model file a task runs on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use omex_compiler::container::{ModelFacts, Task};
use omex_compiler::diagnostic::{Code, Diagnostic, Source, quoted};
use omex_compiler::import::family::ModelConfig;
use omex_compiler::registry::{
    Places, REGISTRY_FILE, Registry, ResolvedModel, Resolver, USER_REGISTRY_FILE,
};
use omex_grammar::reference::ModelReference;
use omex_kernels::format::Descriptor;
use omex_runtime::os::file::read_small;

use super::container::ContainerText;
use super::output::Failure;

#[derive(Clone, Debug, Args)]
pub(crate) struct ModelArgs {
    /// The model, when the container names none
    #[arg(short, long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// Registry of zsei:// names
    #[arg(long, value_name = "FILE")]
    pub(crate) registry: Option<PathBuf>,
    /// The cache directory, instead of the container's or the user's
    #[arg(long, value_name = "DIR")]
    pub(crate) cache_dir: Option<PathBuf>,
}

/// What the container's requirements are held against.
pub(crate) fn facts(config: &ModelConfig) -> ModelFacts<'_> {
    let bulk = config.weights.layers.first().map(|l| l.up.weight.format);
    let weight_bits = match bulk.map(|f| f.descriptor()) {
        Some(Descriptor::Quantized(q)) => q.codes.low + q.codes.high,
        Some(Descriptor::Float { element_bytes }) => 8 * element_bytes,
        None => 0,
    };
    ModelFacts {
        architecture: &config.architecture,
        name: config.name.as_deref().unwrap_or_default(),
        weight_bits: weight_bits as u8,
        layers: config.weights.layers.len() as u32,
    }
}

/// The model file of a task, verified against the registry's digest.
///
/// Errors: a registry that cannot be read, no model or several, one that is
/// missing or not what the registry says.
pub(crate) fn resolve(
    args: &ModelArgs,
    task: &Task,
    text: &ContainerText,
) -> Result<ResolvedModel, Failure> {
    let beside = text.folder.clone();
    let user = super::places().ok();
    let places = Places {
        container: beside.clone(),
        working: PathBuf::from("."),
        cache: args.cache_dir.clone().or(user.map(|p| p.cache)),
    };
    let mut registries = Vec::new();
    if let Some(path) = &args.registry {
        registries.push(read_registry(path)?);
    }
    let home = std::env::var_os("OMEX_HOME").map(PathBuf::from);
    let dotted = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".omex"));
    let own = home.or_else(dotted);
    let files = [
        beside.map(|folder| folder.join(REGISTRY_FILE)),
        own.map(|folder| folder.join(USER_REGISTRY_FILE)),
    ];
    for path in files.into_iter().flatten() {
        // Whatever has that name is meant to be a registry.
        if path.symlink_metadata().is_ok() {
            registries.push(read_registry(&path)?);
        }
    }
    let flag = match &args.model {
        None => None,
        Some(text) => Some(ModelReference::parse(text).map_err(|e| {
            let message = format!("-m {} cannot be read: {e}", quoted(text));
            Diagnostic::error(Code::ReferenceSyntax, message)
        })?),
    };
    let resolver = Resolver {
        places: &places,
        registries: &registries,
        exists: &|path| path.is_file(),
    };
    let model = resolver.resolve_task(task, flag.as_ref())?;
    if flag.is_some() && task.inferences().all(|(_, i)| i.model.is_some()) {
        crate::tell!("note: the container names its model, so -m has no effect");
    }
    if let Some(digest) = &model.digest {
        let cannot = |e: std::io::Error| {
            let message = format!("the model cannot be read: {e}");
            Diagnostic::error(Code::FileRead, message).in_file(model.path.to_string_lossy(), None)
        };
        let mut file = std::fs::File::open(&model.path).map_err(cannot)?;
        if !digest.matches(&mut file).map_err(cannot)? {
            return Err(digest.mismatch(&model.path).into());
        }
    }
    Ok(model)
}

/// Far above what anybody writes.
const REGISTRY_BYTES_MAX: u64 = 16 << 20;

fn read_registry(path: &Path) -> Result<Registry, Failure> {
    let name = path.to_string_lossy().into_owned();
    let bytes = read_small(path, REGISTRY_BYTES_MAX).map_err(|e| {
        let message = format!("the registry cannot be read: {e}");
        Diagnostic::error(Code::FileRead, message).in_file(&name, None)
    })?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to() as u64;
        Diagnostic::error(Code::RegistryInvalid, "the registry is not UTF-8")
            .in_file(&name, Some(at))
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let source = Arc::new(Source::new(&name, text));
    Ok(Registry::parse(&source, folder)?)
}
