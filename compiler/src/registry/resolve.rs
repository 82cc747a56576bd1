//! Which file a reference stands for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use omex_grammar::quantization::Quantization;
use omex_grammar::reference::ModelReference;

use super::{Entry, FileDigest, ModelFile, Place, Registry};
use crate::container::Task;
use crate::diagnostic::{Code, Diagnostic, Source, Span, did_you_mean, quoted};

/// Where files are looked up.
#[derive(Clone, Debug)]
pub struct Places {
    /// The container's folder; None when it comes from the standard input.
    pub container: Option<PathBuf>,
    pub working: PathBuf,
    pub cache: Option<PathBuf>,
}

/// A model file that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedModel {
    pub path: PathBuf,
    /// What the registry says that the file hashes to.
    pub digest: Option<FileDigest>,
    /// `?q8` of the reference: see [`Task::check_model`].
    pub quantization: Option<Quantization>,
    pub reference: ModelReference,
}

/// Finds model files.
pub struct Resolver<'a> {
    pub places: &'a Places,
    /// The first that knows a name wins: --registry, the container's, the user's.
    pub registries: &'a [Registry],
    /// Whether a path is a model: a file, or a folder of safetensors.
    pub exists: &'a dyn Fn(&Path) -> bool,
}

/// Where a reference was written.
#[derive(Clone, Copy)]
enum Origin<'a> {
    Text(&'a Arc<Source>, Span),
    Flag,
}

impl Origin<'_> {
    fn mark(self, diagnostic: Diagnostic) -> Diagnostic {
        match self {
            Origin::Text(source, span) => diagnostic.at(source, span, ""),
            Origin::Flag => diagnostic.note("named by -m"),
        }
    }
}

impl Resolver<'_> {
    /// The one model of a task. `flag` is what -m names, for nodes without a model of their own.
    ///
    /// # Errors
    ///
    /// No model is named, there are several, or the one named is not there.
    pub fn resolve_task(
        &self,
        task: &Task,
        flag: Option<&ModelReference>,
    ) -> Result<ResolvedModel, Diagnostic> {
        let mut resolved: Option<(ResolvedModel, Span)> = None;
        let mut fallback: Option<ResolvedModel> = None;
        let mut last: Option<ModelReference> = None;
        for (node, inference) in task.inferences() {
            let (model, span) = match &inference.model {
                // Nodes share their models: one lookup serves a run of them.
                Some(model) if last.as_ref() == Some(&model.value) => continue,
                Some(model) => {
                    last = Some(model.value.clone());
                    (
                        self.find(&model.value, Origin::Text(&task.source, model.span))?,
                        model.span,
                    )
                }
                None => {
                    let model = match fallback.take() {
                        Some(model) => model,
                        None => self.fallback(flag)?,
                    };
                    fallback = Some(model.clone());
                    (model, task.node(node).id.span)
                }
            };
            match &resolved {
                None => resolved = Some((model, span)),
                Some((first, _)) if first.path == model.path => {}
                Some((first, first_span)) => {
                    let message = "several models in one task are not supported yet";
                    return Err(Diagnostic::error(Code::NotSupported, message)
                        .at(&task.source, span, model.path.display().to_string())
                        .label(&task.source, *first_span, first.path.display().to_string())
                        .help("make one container for each model"));
                }
            }
        }
        match resolved {
            Some((model, _)) => Ok(model),
            None => self.fallback(flag),
        }
    }

    /// What -m names, else the first registry's default.
    fn fallback(&self, flag: Option<&ModelReference>) -> Result<ResolvedModel, Diagnostic> {
        if let Some(reference) = flag {
            return self.find(reference, Origin::Flag);
        }
        let default = self
            .registries
            .iter()
            .find_map(|r| r.default_model.as_ref().map(|model| (r, model)));
        match default {
            Some((registry, model)) => {
                // A default is a path like the others of its registry.
                if let ModelReference::Path(path) = &model.value {
                    let path = registry.folder.join(path);
                    if (self.exists)(&path) {
                        return Ok(found(path, None, None, &model.value));
                    }
                }
                self.find(&model.value, Origin::Text(&registry.source, model.span))
            }
            None => Err(Diagnostic::error(Code::NoModel, "no model is named")
                .help("name one with -m path/to/model.gguf")
                .help("or write `\"model_reference\": \"local://models/model.gguf\"` into the node")
                .help("or give the registry a `[default]` with `model = \"path/to/model.gguf\"`")),
        }
    }

    fn find(
        &self,
        reference: &ModelReference,
        origin: Origin<'_>,
    ) -> Result<ResolvedModel, Diagnostic> {
        match reference {
            ModelReference::Registry { name, quantization } => {
                self.in_registries(reference, name, *quantization, origin)
            }
            ModelReference::Local(path) | ModelReference::Path(path) => {
                self.in_folders(reference, path, origin)
            }
        }
    }

    fn in_folders(
        &self,
        reference: &ModelReference,
        path: &str,
        origin: Origin<'_>,
    ) -> Result<ResolvedModel, Diagnostic> {
        let container = self.places.container.as_deref();
        let mut folders: Vec<&Path> = match origin {
            // A shell completes paths from the working directory.
            Origin::Flag => vec![&self.places.working],
            Origin::Text(..) => Vec::new(),
        };
        folders.extend(container);
        folders.push(&self.places.working);
        folders.extend(
            self.registries
                .iter()
                .flat_map(|r| r.search.iter().map(PathBuf::as_path)),
        );
        folders.extend(self.places.cache.as_deref());
        let mut tried: Vec<PathBuf> = Vec::new();
        for folder in folders {
            // Joining an absolute path gives that path.
            let candidate = folder.join(path);
            if (self.exists)(&candidate) {
                return Ok(found(candidate, None, None, reference));
            }
            if !tried.contains(&candidate) {
                tried.push(candidate);
            }
        }
        let message = format!("the model {} is not there", quoted(&reference.to_string()));
        let diagnostic = origin.mark(Diagnostic::error(Code::ModelMissing, message));
        let diagnostic = tried.iter().fold(diagnostic, |d, path| {
            d.note(format!("tried {}", path.display()))
        });
        Err(diagnostic.help("put the file there, or name the one that you have"))
    }

    fn in_registries(
        &self,
        reference: &ModelReference,
        name: &str,
        quantization: Option<Quantization>,
        origin: Origin<'_>,
    ) -> Result<ResolvedModel, Diagnostic> {
        for registry in self.registries {
            let Some(entry) = registry.models.get(name) else {
                continue;
            };
            let Some(file) = pick(entry, quantization) else {
                continue;
            };
            let path = match &file.place {
                Place::Path(path) => path,
                Place::Url(url) => {
                    let what = quoted(&reference.to_string());
                    let message = format!("fetching the model {what} is not supported yet");
                    let error = Diagnostic::error(Code::NotSupported, message);
                    return Err(origin
                        .mark(error)
                        .label(&registry.source, file.span, "the registry says where from")
                        .help(format!(
                            "download {} and name the file by `path`",
                            quoted(url)
                        )));
                }
            };
            if (self.exists)(path) {
                let digest = file.digest;
                return Ok(found(path.clone(), digest, quantization, reference));
            }
            let message = format!("the model {} is not there", quoted(&reference.to_string()));
            return Err(origin
                .mark(Diagnostic::error(Code::ModelMissing, message))
                .label(
                    &registry.source,
                    file.span,
                    "the registry says that it is here",
                )
                .note(format!("tried {}", path.display()))
                .help("put the file there, or correct the registry"));
        }
        Err(self.unknown(reference, name, quantization, origin))
    }

    /// The error for a name that no registry knows: it says what to write, and where.
    fn unknown(
        &self,
        reference: &ModelReference,
        name: &str,
        quantization: Option<Quantization>,
        origin: Origin<'_>,
    ) -> Diagnostic {
        let message = format!(
            "no registry knows the model {}",
            quoted(&reference.to_string())
        );
        let mut diagnostic = origin.mark(Diagnostic::error(Code::NotInRegistry, message));
        if self.registries.is_empty() {
            diagnostic = diagnostic.note(format!(
                "there is no {} beside the container",
                super::REGISTRY_FILE
            ));
        }
        for registry in self.registries {
            let text = match registry.models.get(name) {
                Some(entry) => {
                    let known: Vec<String> = entry
                        .quantizations
                        .keys()
                        .map(Quantization::to_string)
                        .collect();
                    format!(
                        "{} knows it as: {}",
                        registry.source.name(),
                        known.join(", ")
                    )
                }
                None => format!("looked in {}", registry.source.name()),
            };
            diagnostic = diagnostic.note(text);
        }
        let names = self
            .registries
            .iter()
            .flat_map(|r| r.models.keys().map(String::as_str));
        if let Some(near) = did_you_mean(name, names).filter(|near| *near != name) {
            diagnostic = diagnostic.help(format!("did you mean `zsei://models/{near}`?"));
        }
        let key = match quantization {
            Some(quantization) => format!("[models.\"{name}\".{quantization}]"),
            None => format!("[models.\"{name}\"]"),
        };
        let file = self
            .registries
            .first()
            .map_or(super::REGISTRY_FILE, |r| r.source.name());
        diagnostic.help(format!(
            "write into {file}:\n{key}\npath = \"path/to/model.gguf\""
        ))
    }
}

/// The file of a quantization, or of the entry itself: whether that fits is seen in the file.
fn pick(entry: &Entry, wanted: Option<Quantization>) -> Option<&ModelFile> {
    let Some(wanted) = wanted else {
        return entry.file.as_ref().or_else(|| {
            let mut all = entry.quantizations.values();
            all.next().filter(|_| all.next().is_none())
        });
    };
    let exact = entry.quantizations.get(&wanted);
    // A width is met by any format of that width, and by no other.
    let by_width = || match wanted {
        Quantization::Width { bits } => entry
            .quantizations
            .iter()
            .find(|(known, _)| known.bits() == bits)
            .map(|(_, file)| file),
        Quantization::Format(_) => None,
    };
    exact.or_else(by_width).or(entry.file.as_ref())
}

fn found(
    path: PathBuf,
    digest: Option<FileDigest>,
    quantization: Option<Quantization>,
    reference: &ModelReference,
) -> ResolvedModel {
    ResolvedModel {
        path,
        digest,
        quantization,
        reference: reference.clone(),
    }
}
