//! Reading a registry.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use omex_grammar::quantization::Quantization;
use omex_grammar::reference::ModelReference;
use toml::de::DeValue;

use super::{Entry, FileDigest, ModelFile, Place, Registry};
use crate::diagnostic::{Code, Diagnostic, Source, Span, Spanned, did_you_mean, quoted};
use crate::toml_fields::{Reader, Table, Value, as_string, as_table, parse};

pub(super) fn read(source: &Arc<Source>, folder: &Path) -> Result<Registry, Vec<Diagnostic>> {
    let mut reader = Reader::new(source, Code::RegistryInvalid);
    let registry = read_file(&mut reader, folder);
    match registry {
        Some(registry) if !reader.sink.has_errors() => Ok(registry),
        Some(_) | None => Err(reader.sink.into_vec()),
    }
}

fn read_file(reader: &mut Reader<'_>, folder: &Path) -> Option<Registry> {
    let root = parse(reader)?;
    let mut top = Table::new(
        "the registry",
        root.get_ref(),
        Span::from_range(root.span()),
    );
    let search = top.strings(reader, "search").unwrap_or_default();
    for empty in search.iter().filter(|path| !is_path(&path.value)) {
        reader.error("this is no folder", empty.span, "");
    }
    let default_model = match top.table(reader, "default") {
        Some(mut table) => {
            let model = table.string(reader, "model");
            table.finish(reader);
            model.and_then(|text| reference(reader, &text))
        }
        None => None,
    };
    let mut models = BTreeMap::new();
    if let Some(table) = top.table(reader, "models") {
        for (name, value) in table.entries() {
            if let Some(entry) = read_entry(reader, &name, value, folder) {
                models.insert(name.value, entry);
            }
        }
    }
    if let Some(value) = top.get("frameworks") {
        let message = "frameworks in a registry are not supported yet";
        reader.sink.push(
            Diagnostic::error(Code::NotSupported, message)
                .at(reader.source, value.span, "")
                .help("write a `prompt` into the container"),
        );
    }
    top.finish(reader);
    Some(Registry {
        source: reader.source.clone(),
        folder: folder.to_owned(),
        search: search.iter().map(|path| folder.join(&path.value)).collect(),
        default_model,
        models,
    })
}

fn is_path(text: &str) -> bool {
    !text.is_empty() && !text.contains('\0')
}

fn reference(reader: &mut Reader<'_>, text: &Spanned<String>) -> Option<Spanned<ModelReference>> {
    match ModelReference::parse(&text.value) {
        Ok(reference) => Some(Spanned::new(reference, text.span)),
        Err(error) => {
            let message = format!("cannot read {}: {}", quoted(&text.value), error.message);
            reader.error(message, text.span, "");
            None
        }
    }
}

/// `[models.NAME]`: the fields of a file, and tables named by quantizations.
fn read_entry(
    reader: &mut Reader<'_>,
    name: &Spanned<String>,
    value: Value<'_, '_>,
    folder: &Path,
) -> Option<Entry> {
    let probe = format!("zsei://models/{}", name.value);
    if ModelReference::parse(&probe).is_err() {
        let message = format!("no reference can name {}", quoted(&name.value));
        reader.error(message, name.span, "letters, digits, `-`, `_` and `.` only");
    }
    let table = as_table(reader, &name.value, value)?;
    let file = read_file_fields(reader, &table, folder);
    let mut quantizations = BTreeMap::new();
    for (key, value) in table
        .entries()
        .filter(|(key, _)| !FIELDS.contains(&key.value.as_str()))
    {
        let Ok(quantization) = Quantization::parse(&key.value) else {
            let near = did_you_mean(&key.value, FIELDS.into_iter().chain(Quantization::names()));
            let message = format!(
                "{} is neither a field nor a quantization",
                quoted(&key.value)
            );
            reader.sink.push(
                Diagnostic::error(reader.code, message)
                    .at(reader.source, key.span, "")
                    .help_if(near.map(|near| format!("did you mean `{near}`?"))),
            );
            continue;
        };
        let Some(inner) = as_table(reader, &key.value, value) else {
            continue;
        };
        for (unknown, _) in inner
            .entries()
            .filter(|(key, _)| !FIELDS.contains(&key.value.as_str()))
        {
            let message = format!("{} is not a field of a model", quoted(&unknown.value));
            reader.error(message, unknown.span, "");
        }
        match read_file_fields(reader, &inner, folder) {
            Some(file) => {
                quantizations.insert(quantization, file);
            }
            None if !reader.sink.has_errors() => {
                reader.error("this model has no `path` and no `url`", key.span, "")
            }
            None => {}
        }
    }
    if file.is_none() && quantizations.is_empty() && !reader.sink.has_errors() {
        reader.error(
            format!(
                "the model {} has no `path` and no `url`",
                quoted(&name.value)
            ),
            name.span,
            "",
        );
    }
    Some(Entry {
        file,
        quantizations,
    })
}

const FIELDS: [&str; 4] = ["path", "url", "sha256", "blake3"];

fn read_file_fields(
    reader: &mut Reader<'_>,
    table: &Table<'_, '_>,
    folder: &Path,
) -> Option<ModelFile> {
    let mut path = None;
    let mut url = None;
    let mut digest = None;
    for (key, value) in table.entries() {
        match key.value.as_str() {
            "path" => path = as_string(reader, "path", value),
            "sha256" => {
                digest = read_digest(reader, "sha256", value)
                    .map(FileDigest::Sha256)
                    .or(digest)
            }
            "blake3" => {
                digest = read_digest(reader, "blake3", value)
                    .map(FileDigest::Blake3)
                    .or(digest)
            }
            "url" => url = as_string(reader, "url", value),
            _ => {}
        }
    }
    // A path beside a URL is where the file is already.
    let Some(path) = path else {
        return url.map(|url| ModelFile {
            place: Place::Url(url.value),
            digest,
            span: url.span,
        });
    };
    if !is_path(&path.value) {
        reader.error("this is no path of a file", path.span, "");
        return None;
    }
    Some(ModelFile {
        place: Place::Path(folder.join(&path.value)),
        digest,
        span: path.span,
    })
}

fn read_digest(reader: &mut Reader<'_>, name: &str, value: Value<'_, '_>) -> Option<[u8; 32]> {
    if !matches!(value.value, DeValue::String(_)) {
        as_string(reader, name, value);
        return None;
    }
    let text = as_string(reader, name, value)?;
    let digits: Option<Vec<u8>> = text
        .value
        .chars()
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
        .collect();
    let bytes = digits.map(|digits| {
        digits
            .chunks(2)
            .map(|pair| pair.iter().fold(0, |n, d| n * 16 + d))
            .collect()
    });
    let bytes: Option<Vec<u8>> = bytes.filter(|_| text.value.len() == 64);
    let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
    if bytes.is_none() {
        reader.error(format!("`{name}` is 64 hexadecimal digits"), text.span, "");
    }
    bytes
}
