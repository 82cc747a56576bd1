//! The code section: the machine code of every kernel, equal code once.

use std::collections::BTreeMap;

use omex_kernels::KernelSpec;
use omex_plan::{CodeRange, Kernel};

/// Kernels start at multiples of this in the section.
const CODE_ALIGN: usize = 64;

#[derive(Clone, Debug, PartialEq)]
pub struct CodeSection {
    pub kernels: Vec<Kernel>,
    pub bytes: Vec<u8>,
}

impl CodeSection {
    /// Lays out the code of `specs`. `code_of` gives a kernel's code, or `None`
    /// where the runtime's own implementation computes it.
    pub fn new(
        specs: &[KernelSpec],
        code_of: &dyn Fn(&KernelSpec) -> Option<Vec<u8>>,
    ) -> CodeSection {
        let mut bytes: Vec<u8> = Vec::new();
        let mut ranges: BTreeMap<Vec<u8>, CodeRange> = BTreeMap::new();
        let kernels = specs.iter().map(|spec| {
            let code = code_of(spec).filter(|code| !code.is_empty());
            let range = code.map(|code| {
                *ranges.entry(code).or_insert_with_key(|code| {
                    bytes.resize(bytes.len().next_multiple_of(CODE_ALIGN), 0);
                    let offset = bytes.len() as u64;
                    bytes.extend_from_slice(code);
                    CodeRange {
                        offset,
                        bytes: code.len() as u64,
                    }
                })
            });
            Kernel::new(*spec, range)
        });
        CodeSection {
            kernels: kernels.collect(),
            bytes,
        }
    }
}
