//! `omex inspect`: GGUF models, packed models and plans.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use omex_compiler::diagnostic::{Code, Diagnostic, clean};
use omex_compiler::import::gguf::{Gguf, Value};
use omex_compiler::import::{MappedFile, pack};
use omex_plan::WeightSource;
use omex_plan::file::{PLAN_MAGIC, SectionKind};
use omex_plan::packed::PACKED_MAGIC;
use serde_json::json;

use super::output::{Failure, bytes};
use super::plan_file::PlanFile;

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A GGUF model, a packed model (.omex) or a plan
    file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn inspect(args: &InspectArgs, _output: &super::output::Output) -> Result<(), Failure> {
    let cannot = |e: std::io::Error| {
        let message = format!("the file cannot be read: {e}");
        Diagnostic::error(Code::FileRead, message).in_file(args.file.to_string_lossy(), None)
    };
    // Opening maps nothing but regular files, so that a FIFO does not block.
    let mut magic = [0; 8];
    let mapped = MappedFile::open(&args.file)?;
    let mut file = mapped.file();
    let read = file.read(&mut magic).map_err(cannot)?;
    if read == 8 && magic == PLAN_MAGIC {
        drop(mapped);
        inspect_plan(&args.file, args.json)
    } else if read == 8 && magic == PACKED_MAGIC {
        drop(mapped);
        inspect_packed(&args.file, args.json)
    } else {
        inspect_gguf(&mapped, args.json)
    }
}

fn inspect_gguf(file: &MappedFile, as_json: bool) -> Result<(), Failure> {
    let gguf = Gguf::parse(file).map_err(|e| e.in_file(file.path()))?;
    let mut stdout = std::io::stdout().lock();
    if as_json {
        let metadata: serde_json::Map<_, _> = gguf
            .metadata()
            .iter()
            .map(|e| (e.key.to_owned(), json!(describe(&e.value))))
            .collect();
        let tensors: Vec<_> = gguf
            .tensors()
            .iter()
            .map(|t| {
                json!({"name": t.name, "type": t.ggml_type.name(), "dims": t.dims(), "bytes": t.size_bytes()})
            })
            .collect();
        let object = json!({
            "schema_version": 1,
            "kind": "gguf",
            "file_bytes": file.len(),
            "metadata": metadata,
            "tensors": tensors,
        });
        writeln!(stdout, "{object}")?;
        return Ok(());
    }
    writeln!(
        stdout,
        "GGUF model, {}, {} metadata entries, {} tensors\n",
        bytes(file.len() as u64),
        gguf.metadata().len(),
        gguf.tensors().len()
    )?;
    for entry in gguf.metadata() {
        writeln!(
            stdout,
            "{:<44} {}",
            clean(entry.key),
            describe(&entry.value)
        )?;
    }
    writeln!(stdout)?;
    for tensor in gguf.tensors() {
        let dims: Vec<String> = tensor.dims().iter().map(u64::to_string).collect();
        writeln!(
            stdout,
            "{:<32} {:<7} {:>20} {:>12}",
            clean(tensor.name),
            tensor.ggml_type.name(),
            dims.join(" x "),
            bytes(tensor.size_bytes())
        )?;
    }
    Ok(())
}

/// A value on one line; long arrays and strings by their size.
fn describe(value: &Value<'_>) -> String {
    const CHARACTERS_MAX: usize = 100;
    match value {
        Value::Array(array) => format!("{} ({} elements)", value.type_name(), array.len),
        Value::String(text) => {
            let line = clean(&String::from_utf8_lossy(text));
            if line.chars().count() <= CHARACTERS_MAX {
                return line;
            }
            let head: String = line.chars().take(CHARACTERS_MAX).collect();
            format!("{head}... ({} bytes)", text.len())
        }
        Value::Bool(v) => v.to_string(),
        other => match (other.as_integer(), other.as_number()) {
            (Some(n), _) => n.to_string(),
            (None, Some(x)) => x.to_string(),
            (None, None) => other.type_name(),
        },
    }
}

fn inspect_packed(path: &Path, as_json: bool) -> Result<(), Failure> {
    let packed = pack::open(path)?;
    let index = &packed.index;
    let digest = blake3::Hash::from(packed.digest).to_hex();
    let mut stdout = std::io::stdout().lock();
    if as_json {
        let tensors: Vec<_> = index
            .tensors
            .iter()
            .map(|t| {
                json!({
                    "name": t.name,
                    "format": t.format.get().map(|f| f.name()),
                    "rows": t.rows,
                    "k": t.k,
                    "bytes": t.bytes(),
                    "pieces": t.pieces.len(),
                })
            })
            .collect();
        let object = json!({
            "schema_version": 1,
            "kind": "packed",
            "digest": digest.as_str(),
            "model": index.model_name,
            "file_bytes": packed.file_bytes,
            "pages": index.pages.len(),
            "tensors": tensors,
        });
        writeln!(stdout, "{object}")?;
        return Ok(());
    }
    let name = match index.model_name.as_str() {
        "" => "a model without a name",
        name => name,
    };
    writeln!(
        stdout,
        "Packed model of {}, {}, {} pages, {} tensors\ndigest {digest}\n",
        clean(name),
        bytes(packed.file_bytes),
        index.pages.len(),
        index.tensors.len()
    )?;
    for tensor in &index.tensors {
        writeln!(
            stdout,
            "{:<32} {:<7} {:>8} x {:<8} {:>12}",
            clean(&tensor.name),
            tensor.format.get().map_or("?", |f| f.name()),
            tensor.rows,
            tensor.k,
            bytes(tensor.bytes().unwrap_or(0))
        )?;
    }
    Ok(())
}

fn inspect_plan(path: &Path, as_json: bool) -> Result<(), Failure> {
    let file = PlanFile::open(path)?;
    let plan = file.plan.plan();
    let id = blake3::Hash::from(plan.result_id).to_hex();
    let digest = blake3::Hash::from(plan.weights.packed_digest).to_hex();
    let sections = SectionKind::ALL.map(|k| (k.name(), file.header.section(k).bytes));
    let source = match plan.weights.source {
        WeightSource::Mapped => "mapped",
        WeightSource::Read { .. } => "read",
        WeightSource::Paged(_) => "paged",
    };
    let with_code = plan.kernels.iter().filter(|k| k.code.is_some()).count();
    let mut stdout = std::io::stdout().lock();
    if as_json {
        let object = json!({
            "schema_version": 1,
            "kind": "plan",
            "task_id": plan.program.task_id,
            "target": plan.target.name,
            "arch": plan.target.arch,
            "features": plan.target.features,
            "model": plan.model.name,
            "architecture": plan.model.architecture,
            "context": plan.model.context,
            "columns_max": plan.columns_max,
            "threads_max": plan.threads_max,
            "arena_bytes": plan.arena_bytes,
            "rss_peak_bytes": plan.memory.rss_peak_bytes(),
            "charge_peak_bytes": plan.memory.charge_peak_bytes(),
            "weights": source,
            "packed_digest": digest.as_str(),
            "result_id": id.as_str(),
            "steps": plan.steps.len(),
            "phases": plan.phases.len(),
            "kernels": plan.kernels.len(),
            "kernels_with_code": with_code,
            "sections": sections.iter().map(|(n, b)| json!({"name": n, "bytes": b})).collect::<Vec<_>>(),
        });
        writeln!(stdout, "{object}")?;
        return Ok(());
    }
    let rows = [
        ("task", clean(&plan.program.task_id)),
        (
            "target",
            format!(
                "{} ({}; {})",
                clean(&plan.target.name),
                plan.target.arch,
                plan.target.features.join(", ")
            ),
        ),
        (
            "model",
            format!(
                "{} ({}, {} layers, vocabulary {})",
                clean(&plan.model.name),
                clean(&plan.model.architecture),
                plan.model.layers,
                plan.model.vocabulary
            ),
        ),
        ("context", format!("{} positions", plan.model.context)),
        ("pass", format!("up to {} tokens", plan.columns_max)),
        ("threads", format!("up to {}", plan.threads_max)),
        (
            "weights",
            format!("{source}, packed model {}", &digest.as_str()[..16]),
        ),
        ("arena", bytes(plan.arena_bytes)),
        (
            "memory",
            format!(
                "{} resident, {} charged",
                bytes(plan.memory.rss_peak_bytes()),
                bytes(plan.memory.charge_peak_bytes())
            ),
        ),
        (
            "schedule",
            format!(
                "{} steps in {} phases, {} kernels ({with_code} generated)",
                plan.steps.len(),
                plan.phases.len(),
                plan.kernels.len()
            ),
        ),
        ("result id", id.to_string()),
    ];
    for (name, value) in rows {
        writeln!(stdout, "{name:<10} {value}")?;
    }
    for (name, size) in sections {
        writeln!(stdout, "{:<10} {name}, {}", "section", bytes(size))?;
    }
    Ok(())
}
