//! Which model file a task runs on.

use std::path::{Path, PathBuf};

use clap::Args;
use omex_compiler::container::{ModelFacts, Task};
use omex_compiler::diagnostic::{Code, Diagnostic, quoted};
use omex_compiler::import::llama::ModelConfig;
use omex_grammar::reference::ModelReference;
use omex_kernels::format::Descriptor;

use super::output::{Failure, Output};

#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// The model, when the container names none
    #[arg(short, long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Registry of zsei:// names
    #[arg(long, value_name = "FILE")]
    pub registry: Option<PathBuf>,
    /// The cache directory, instead of the container's or the user's
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
}

/// What the container's requirements are held against.
pub fn facts(config: &ModelConfig) -> ModelFacts<'_> {
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
        context_tokens_max: config.hyperparameters.context_len,
    }
}

/// The model file of a task: every node's own reference, else `-m`, else the
/// registry's default.
///
/// Errors: no model named, several different ones, or none at the places that
/// the reference stands for.
pub fn resolve(
    args: &ModelArgs,
    task: &Task,
    folder: &Path,
    _output: &Output,
) -> Result<PathBuf, Failure> {
    let named = task.models();
    if let [first, second, ..] = &named[..] {
        let message = "plans with several models are not built yet";
        return Err(Diagnostic::error(Code::NotSupported, message)
            .at(&task.source, second.span, "another model")
            .label(&task.source, first.span, "the first model")
            .into());
    }
    match (named.first(), &args.model) {
        (Some(reference), _) => find(&reference.value, folder, args).map_err(|tried| {
            missing(&reference.value, &tried)
                .at(&task.source, reference.span, "")
                .into()
        }),
        (None, Some(path)) => {
            let reference = ModelReference::parse(path).map_err(|e| {
                let message = format!("-m {} cannot be read: {e}", quoted(path));
                Diagnostic::error(Code::ReferenceSyntax, message)
            })?;
            Ok(find(&reference, folder, args).map_err(|tried| missing(&reference, &tried))?)
        }
        (None, None) => Err(Diagnostic::error(Code::NoModel, "no model is named")
            .help("give -m MODEL.gguf, or a `model_reference` in the container")
            .into()),
    }
}

/// The first place that holds the file, or all that were tried.
fn find(
    reference: &ModelReference,
    folder: &Path,
    args: &ModelArgs,
) -> Result<PathBuf, Vec<PathBuf>> {
    let Some(path) = reference.path() else {
        return Err(Vec::new());
    };
    let mut places = vec![folder.join(path), PathBuf::from(path)];
    let cache = args.cache_dir.clone();
    let cache = cache.or_else(|| super::places().ok().map(|p| p.cache));
    places.extend(cache.map(|c| c.join(path)));
    places.dedup();
    match places.iter().find(|p| p.is_file()) {
        Some(found) => Ok(found.clone()),
        None => Err(places),
    }
}

fn missing(reference: &ModelReference, tried: &[PathBuf]) -> Diagnostic {
    let name = match reference {
        ModelReference::Registry { name, .. } => format!("zsei://models/{name}"),
        ModelReference::Local(path) => format!("local://{path}"),
        ModelReference::Path(path) => path.clone(),
    };
    let message = format!("the model {} is not there", quoted(&name));
    tried.iter().fold(
        Diagnostic::error(Code::ModelMissing, message),
        |diagnostic, path| diagnostic.note(format!("tried {}", path.display())),
    )
}
