//! Where every tensor lies in a packed model: pure arithmetic over shapes.

use omex_kernels::WeightFormat;
use omex_plan::PageId;
use omex_plan::packed::{
    FormatCode, PACKED_HEADER_BYTES, PAGE_ALIGN, PAGE_BYTES_MAX, PackedIndex, PackedLayout, Page,
    Piece, Tensor,
};

use super::Part;
use crate::diagnostic::{Code, quoted};
use crate::import::ImportError;
use crate::import::gguf::{self, Gguf};

/// Pieces begin at multiples of this in their page: the step of all kernels.
const PIECE_ALIGN: u64 = 64;
/// Longest name of a model that is kept: a longer one is no name.
const NAME_BYTES_MAX: usize = 255;

/// The index with all digests still zero, and the length of the whole file.
#[derive(Debug)]
pub(super) struct FileLayout {
    pub(super) index: PackedIndex,
    pub(super) file_bytes: u64,
}

/// Lays the tensors out in pages, in the order given.
///
/// Requires: all digests of `index` have a fixed size, so the length of the
/// encoded index is known before the pages are written.
/// Ensures: units of a tensor are covered by its pieces in ascending order;
/// pieces of a page do not overlap and lie in it in the order of the tensors.
pub(super) fn lay_out(gguf: &Gguf<'_>, order: &[Part]) -> Result<FileLayout, ImportError> {
    let mut pages = Pages::default();
    let mut tensors = Vec::with_capacity(order.len());
    for part in order {
        let mut tensor = describe(gguf.tensor_at(part.tensor), part)?;
        let (units, unit_bytes) = tensor.unit().ok_or_else(|| {
            let source = gguf.tensor_at(part.tensor);
            ImportError::new(
                Code::ModelUnsupported,
                format!(
                    "tensor {} of shape {:?} is beyond what kernels compute",
                    quoted(source.name),
                    source.dims()
                ),
            )
            .at(source.offset_bytes)
        })?;
        tensor.pieces = pages.place(units, unit_bytes);
        tensors.push(tensor);
    }
    let name = gguf.get_str("general.name")?;
    let name = name.filter(|name| name.len() <= NAME_BYTES_MAX);
    let mut index = PackedIndex {
        source_digest: [0; 32],
        model_name: name.unwrap_or_default().to_owned(),
        pages: pages.finish(),
        tensors,
    };
    let index_bytes = index.encode().len() as u64;
    let mut file_bytes = (PACKED_HEADER_BYTES + index_bytes).next_multiple_of(PAGE_ALIGN);
    for page in &mut index.pages {
        page.file_offset = file_bytes;
        file_bytes = (file_bytes + page.bytes).next_multiple_of(PAGE_ALIGN);
    }
    Ok(FileLayout { index, file_bytes })
}

/// The tensor without its pieces.
fn describe(source: &gguf::Tensor<'_>, part: &Part) -> Result<Tensor, ImportError> {
    let unsupported = |what: String| {
        ImportError::new(
            Code::ModelUnsupported,
            format!("tensor {} {what}", quoted(source.name)),
        )
        .at(source.offset_bytes)
    };
    let format = WeightFormat::from_ggml_type(source.ggml_type.id())
        .ok_or_else(|| unsupported(format!("has type {}", source.ggml_type.name())))?;
    let extent = |n: u64| {
        u32::try_from(n).map_err(|_| unsupported(format!("has the shape {:?}", source.dims())))
    };
    let (format, rows, k) = match part.layout {
        PackedLayout::Vector => (WeightFormat::F32, 1, part.count),
        PackedLayout::Rows | PackedLayout::Panels => {
            (format, part.count, extent(source.row_elements())?)
        }
    };
    Ok(Tensor {
        name: part.name.clone(),
        format: FormatCode::new(format),
        layout: part.layout,
        rows,
        k,
        pieces: Vec::new(),
    })
}

/// Fills pages one after the other.
#[derive(Default)]
struct Pages {
    /// Bytes used of each page; the last one is being filled.
    used: Vec<u64>,
}

impl Pages {
    /// Places `units` consecutive units of `unit_bytes` each.
    fn place(&mut self, units: u32, unit_bytes: u64) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut first_unit = 0;
        while first_unit < units {
            let offset = self.used.last().copied().unwrap_or(PAGE_BYTES_MAX);
            let offset = offset.next_multiple_of(PIECE_ALIGN);
            let fitting = PAGE_BYTES_MAX.saturating_sub(offset) / unit_bytes;
            if fitting == 0 && offset > 0 {
                self.used.push(0);
                continue;
            }
            // A unit larger than a page gets a page to itself.
            let count = fitting.clamp(1, u64::from(units - first_unit)) as u32;
            pieces.push(Piece {
                page: PageId::from(self.used.len() - 1),
                offset,
                first_unit,
                units: count,
            });
            let end = offset + u64::from(count) * unit_bytes;
            *self.used.last_mut().expect("a page is being filled") = end;
            first_unit += count;
        }
        pieces
    }

    /// The pages; offsets and digests are still to be set.
    fn finish(self) -> Vec<Page> {
        self.used
            .into_iter()
            .map(|bytes| Page {
                file_offset: 0,
                bytes,
                digest: [0; 32],
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_fill_pages_in_order() {
        let mut pages = Pages::default();
        let half = PAGE_BYTES_MAX / 2;
        let a = pages.place(3, half);
        let b = pages.place(1, 100);
        let c = pages.place(1, 2 * PAGE_BYTES_MAX);
        let d = pages.place(2, 10);
        let at = |pieces: &[Piece]| -> Vec<_> {
            pieces
                .iter()
                .map(|p| (p.page.0, p.offset, p.first_unit, p.units))
                .collect()
        };
        assert_eq!(at(&a), [(0, 0, 0, 2), (1, 0, 2, 1)]);
        assert_eq!(at(&b), [(1, half, 0, 1)]);
        assert_eq!(at(&c), [(2, 0, 0, 1)], "an oversized unit has its own page");
        assert_eq!(at(&d), [(3, 0, 0, 2)]);
        assert_eq!(
            pages.used,
            [PAGE_BYTES_MAX, half + 100, 2 * PAGE_BYTES_MAX, 20]
        );
    }
}
