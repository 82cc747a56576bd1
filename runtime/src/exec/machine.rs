//! A checked plan with memory: its arena, its pages and its code.

use std::path::PathBuf;
use std::sync::Arc;

use omex_plan::packed::Page;
use omex_plan::{CheckedPlan, KernelId, PageId, Plan};

use super::operand::Operands;
use crate::error::RunError;
use crate::memory::CodeSource;
use crate::os::memory::{Code, FileMapping, Region};
use crate::pager::timeline::Timeline;
use crate::pager::{Gathered, Pager};

/// Where each page of weights lies, whatever brought it there.
#[derive(Debug)]
pub struct PageTable {
    starts: Vec<*const u8>,
    /// Brings the pages that come and go, where some do.
    pager: Option<Pager>,
    /// Where pages are mapped, and from which file; pages that were read lie in
    /// the arena.
    mapping: Option<(FileMapping, PathBuf)>,
}

impl PageTable {
    /// Pages of a packed model that is mapped as a whole, from the file at `path`.
    ///
    /// Panics when a page is outside the mapping.
    pub fn mapped(pages: &[Page], mapping: FileMapping, path: PathBuf) -> PageTable {
        let start = |page: &Page| {
            let bytes = &mapping[page.file_offset as usize..][..page.bytes as usize];
            bytes.as_ptr()
        };
        PageTable {
            starts: pages.iter().map(start).collect(),
            pager: None,
            mapping: Some((mapping, path)),
        }
    }

    /// Pages at these addresses, which the caller keeps alive.
    pub(crate) fn resident(starts: Vec<*const u8>) -> PageTable {
        PageTable {
            starts,
            pager: None,
            mapping: None,
        }
    }

    /// Pages at these addresses whenever `pager` says that they are there;
    /// pages that are only gathered from have none.
    pub(crate) fn paged(starts: Vec<*const u8>, pager: Pager) -> PageTable {
        PageTable {
            starts,
            pager: Some(pager),
            mapping: None,
        }
    }

    /// A pass begins with its body; its logits are asked for if `head_follows`.
    pub(super) fn begin_body(&self, head_follows: bool) {
        if let Some(pager) = &self.pager {
            pager.begin_body(head_follows);
        }
    }

    /// The head runs for a column of the last pass.
    pub(super) fn begin_head(&self) {
        if let Some(pager) = &self.pager {
            pager.begin_head();
        }
    }

    /// Whether [`PageTable::enter`] would not wait for a phase.
    pub(super) fn is_ready(&self, phase: usize) -> bool {
        self.pager.as_ref().is_none_or(|p| p.is_ready(phase))
    }

    /// Waits for the pages that a phase is the first to need. `first` is true
    /// for one of the threads that call it. Returns false after a fault.
    pub(super) fn enter(&self, phase: usize, first: bool) -> bool {
        self.pager.as_ref().is_none_or(|p| p.enter(phase, first))
    }

    /// The phases of a run are over.
    pub(super) fn leave(&self) {
        if let Some(pager) = &self.pager {
            pager.leave();
        }
    }

    /// See [`Pager::timeline`].
    pub(super) fn timeline(&self) -> Option<&Timeline> {
        self.pager.as_ref()?.timeline()
    }

    /// See [`Pager::gather`].
    pub(super) fn gather(
        &self,
        page: PageId,
        offset: u64,
        bytes: usize,
    ) -> Option<Option<Gathered<'_>>> {
        self.pager.as_ref()?.gather(page, offset, bytes)
    }

    /// Why pages cannot be brought any more, or are not those that were verified.
    pub(super) fn fault(&self) -> Option<RunError> {
        if let Some(pager) = &self.pager {
            return pager.fault();
        }
        let (mapping, path) = self.mapping.as_ref()?;
        match mapping.is_unchanged() {
            Ok(true) => None,
            Ok(false) => {
                let what = "the packed model was changed while it was used";
                Some(RunError::integrity(path, None, what))
            }
            Err(e) => Some(RunError::io("examine the packed model", path)(e)),
        }
    }

    pub(super) fn start(&self, page: PageId) -> *const u8 {
        self.starts[page.index()]
    }
}

/// The widest vectors that a plan's features allow the runtime's own kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vectors {
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Vectors {
    fn of(features: &[String]) -> Vectors {
        #[cfg(target_arch = "x86_64")]
        {
            let has = |names: &[&str]| names.iter().all(|n| features.iter().any(|f| f == n));
            if has(&["avx2", "f16c", "avx512f", "avx512bw", "avx512vl"]) {
                return Vectors::Avx512;
            }
            if has(&["avx2", "f16c"]) {
                return Vectors::Avx2;
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = features;
        Vectors::Baseline
    }
}

/// Code that kernels' entry points lie in.
#[derive(Debug)]
pub enum KeptCode {
    /// The plan's own.
    Mapped(Code),
    #[cfg(feature = "jit")]
    Made(Box<omex_codegen::jit::JitCode>),
}

/// Everything that a pass reads and writes.
#[derive(Debug)]
pub struct Machine {
    pub(super) plan: Arc<CheckedPlan>,
    /// Before the arena, which its I/O threads write to until they end.
    pub(super) pages: PageTable,
    pub(super) arena: Arc<Region>,
    /// See [`Machine::take_session_memory`].
    pub(super) session_taken: bool,
    pub(super) vectors: Vectors,
    pub(super) operands: Operands,
    /// Entry point of each kernel that has code.
    entries: Vec<Option<*const u8>>,
    code: Option<KeptCode>,
}

impl Machine {
    /// `arena` has the plan's size; `pages` has all its pages; `entries` are
    /// the kernels' entry points, which lie in `code`.
    pub fn new(
        plan: CheckedPlan,
        arena: Region,
        pages: PageTable,
        entries: Vec<Option<*const u8>>,
        code: Option<KeptCode>,
    ) -> Machine {
        let checked = plan.plan();
        assert_eq!(arena.len() as u64, checked.arena_bytes, "arena size");
        assert_eq!(
            pages.starts.len(),
            checked.weights.pages.len(),
            "page table"
        );
        assert_eq!(entries.len(), checked.kernels.len(), "kernel entries");
        let mut machine = Machine {
            operands: Operands::default(),
            vectors: Vectors::of(&checked.target.features),
            plan: Arc::new(plan),
            arena: Arc::new(arena),
            session_taken: false,
            pages,
            entries,
            code,
        };
        machine.operands = Operands::of(&machine);
        machine
    }

    pub fn plan(&self) -> &Plan {
        self.plan.plan()
    }

    pub(super) fn code_source(&self) -> CodeSource {
        match &self.code {
            #[cfg(feature = "jit")]
            Some(KeptCode::Made(_)) => CodeSource::Generator,
            Some(KeptCode::Mapped(_)) | None => CodeSource::Plan,
        }
    }

    pub(super) fn entry(&self, kernel: KernelId) -> Option<*const u8> {
        self.entries[kernel.index()]
    }
}
