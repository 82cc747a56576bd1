//! Plans opened to be looked into, not run.

use std::path::Path;

use omex_compiler::diagnostic::{Code, Diagnostic};
use omex_compiler::import::MappedFile;
use omex_plan::file::{FileError, HEADER_BYTES, Header, SectionKind, decode_metadata};
use omex_plan::{CheckedPlan, check};

use super::output::Failure;

/// A verified plan file.
#[derive(Debug)]
pub(crate) struct PlanFile {
    pub(crate) header: Header,
    pub(crate) plan: CheckedPlan,
    file: MappedFile,
}

impl PlanFile {
    /// Opens and verifies everything but the bundled pages.
    pub(crate) fn open(path: &Path) -> Result<PlanFile, Failure> {
        let file = MappedFile::open(path)?;
        let refuse = |code, what: String| {
            Diagnostic::error(code, what).in_file(path.to_string_lossy(), None)
        };
        let invalid = |e: FileError| {
            let code = match e {
                FileError::Version { .. } => Code::PlanVersion,
                FileError::NotAPlan
                | FileError::Truncated { .. }
                | FileError::Malformed(_)
                | FileError::Digest { .. }
                | FileError::Metadata(_) => Code::PlanInvalid,
            };
            refuse(code, e.to_string())
        };
        let start = &file[..file.len().min(HEADER_BYTES)];
        let header = Header::parse(start, file.len() as u64).map_err(invalid)?;
        for kind in [
            SectionKind::Metadata,
            SectionKind::Code,
            SectionKind::Tokenizer,
        ] {
            header
                .verify(kind, section(&file, &header, kind))
                .map_err(invalid)?;
        }
        let metadata = section(&file, &header, SectionKind::Metadata);
        let plan = decode_metadata(metadata).map_err(invalid)?;
        let plan = check(plan, header.section(SectionKind::Code).bytes)
            .map_err(|e| refuse(Code::PlanInvalid, e.to_string()))?;
        Ok(PlanFile { header, plan, file })
    }

    pub(crate) fn section(&self, kind: SectionKind) -> &[u8] {
        section(&self.file, &self.header, kind)
    }
}

/// The header was checked against the file's length.
fn section<'a>(file: &'a MappedFile, header: &Header, kind: SectionKind) -> &'a [u8] {
    let section = header.section(kind);
    &file[section.offset as usize..(section.offset + section.bytes) as usize]
}
