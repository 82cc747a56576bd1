//! Writing the pages of a packed model.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use omex_kernels::WeightFormat;
use omex_kernels::block::{RawBlock, float_at};
use omex_kernels::format::Descriptor;
use omex_kernels::{PANEL_ROWS, panel};
use omex_plan::packed::{Digest, PAGE_ALIGN, PackedLayout, Piece, Tensor};

use super::layout::FileLayout;
use super::{Part, Progress, Source};
use crate::diagnostic::{Code, quoted};
use crate::import::ImportError;
use crate::import::gguf;

/// Where the pages go, and how a failure to write there is told.
pub(super) struct Output<'a> {
    pub(super) file: &'a File,
    pub(super) folder: &'a std::path::Path,
}

impl Output<'_> {
    /// Writes bytes and zeros up to where the next page may start. A file with
    /// holes costs memory whenever it is cached: the system keeps a record of
    /// each of its blocks.
    pub(super) fn write_up_to_next(
        &self,
        bytes: &mut Vec<u8>,
        offset: u64,
    ) -> Result<(), ImportError> {
        bytes.resize(bytes.len().next_multiple_of(PAGE_ALIGN as usize), 0);
        self.file
            .write_all_at(bytes, offset)
            .map_err(|e| ImportError::io(Code::FileWrite, "write", self.folder, &e))
    }
}

/// Packs all pages on `threads` threads and writes each to its place.
/// Returns the pages' digests.
///
/// Every thread holds one page and the rows that it is made of. The error, if
/// any, is that of the first faulty page, whatever the number of threads.
pub(super) fn write_pages(
    source: &Source<'_>,
    order: &[Part],
    layout: &FileLayout,
    output: &Output<'_>,
    threads: usize,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Vec<Digest>, ImportError> {
    let pages = pieces_by_page(layout);
    let total_bytes = layout.index.pages.iter().map(|p| p.bytes).sum();
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let done_bytes = AtomicU64::new(0);
    let results = Mutex::new(vec![None; pages.len()]);

    let work = || {
        let mut buffers = Buffers::default();
        while !failed.load(Ordering::Relaxed) {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(pieces) = pages.get(i) else {
                return;
            };
            let page = &layout.index.pages[i];
            let result = pack_page(source, order, layout, pieces, page.bytes, &mut buffers)
                .and_then(|()| {
                    let digest = *blake3::hash(&buffers.page).as_bytes();
                    output.write_up_to_next(&mut buffers.page, page.file_offset)?;
                    Ok(digest)
                });
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            results.lock().expect("no thread panics holding it")[i] = Some(result);
            let done = done_bytes.fetch_add(page.bytes, Ordering::Relaxed) + page.bytes;
            progress(Progress::Packing {
                done_bytes: done,
                total_bytes,
            });
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(pages.len()) {
            scope.spawn(work);
        }
        work();
    });
    // Pages are claimed in order, so all before the first faulty one are done.
    results
        .into_inner()
        .expect("no thread panics holding it")
        .into_iter()
        .map(|result| result.expect("a page is skipped only behind a faulty one"))
        .collect()
}

/// The pieces of each page: index of the tensor and piece.
fn pieces_by_page(layout: &FileLayout) -> Vec<Vec<(usize, Piece)>> {
    let mut pages = vec![Vec::new(); layout.index.pages.len()];
    for (t, tensor) in layout.index.tensors.iter().enumerate() {
        for piece in &tensor.pieces {
            pages[piece.page.index()].push((t, *piece));
        }
    }
    pages
}

#[derive(Default)]
struct Buffers {
    page: Vec<u8>,
    rows: Vec<u8>,
}

fn pack_page(
    source: &Source<'_>,
    order: &[Part],
    layout: &FileLayout,
    pieces: &[(usize, Piece)],
    bytes: u64,
    buffers: &mut Buffers,
) -> Result<(), ImportError> {
    buffers.page.clear();
    buffers.page.resize(bytes as usize, 0);
    for (t, piece) in pieces {
        let tensor = &layout.index.tensors[*t];
        let part = &order[*t];
        let (_, unit_bytes) = tensor.unit().expect("the layout checked the shape");
        let start = piece.offset as usize;
        let end = start + (u64::from(piece.units) * unit_bytes) as usize;
        let unit_bytes = unit_bytes as usize;
        let out = &mut buffers.page[start..end];
        pack_piece(
            source,
            part,
            tensor,
            piece,
            out,
            unit_bytes,
            &mut buffers.rows,
        )?;
    }
    Ok(())
}

fn pack_piece(
    source: &Source<'_>,
    part: &Part,
    tensor: &Tensor,
    piece: &Piece,
    out: &mut [u8],
    unit_bytes: usize,
    rows: &mut Vec<u8>,
) -> Result<(), ImportError> {
    let from = source.gguf.tensor_at(part.tensor);
    // What is packed has the format of the file, except for vectors.
    let format =
        WeightFormat::from_ggml_type(from.ggml_type.id()).expect("the layout checked the format");
    let rows_per_unit = match tensor.layout {
        PackedLayout::Panels => u64::from(PANEL_ROWS),
        PackedLayout::Rows | PackedLayout::Vector => 1,
    };
    // A vector is one row of the part's elements.
    let (row_bytes, skip_bytes) = match tensor.layout {
        PackedLayout::Panels | PackedLayout::Rows => {
            (from.row_bytes(), u64::from(part.first) * from.row_bytes())
        }
        PackedLayout::Vector => (format.row_bytes(part.count), format.row_bytes(part.first)),
    };
    let first_row = u64::from(piece.first_unit) * rows_per_unit;
    let end_row = (first_row + u64::from(piece.units) * rows_per_unit).min(u64::from(tensor.rows));
    let start = from.range.start + skip_bytes + first_row * row_bytes;
    rows.resize(((end_row - first_row) * row_bytes) as usize, 0);
    source.read_exact_at(rows, start)?;
    let not_finite = |at: u64| not_finite(from, format, start + at);

    match tensor.layout {
        PackedLayout::Panels => {
            let panel_rows_bytes = (rows_per_unit * row_bytes) as usize;
            let panels = out.chunks_exact_mut(unit_bytes);
            for (i, (rows, out)) in rows.chunks(panel_rows_bytes).zip(panels).enumerate() {
                panel::pack_panel(format, tensor.k, rows, out).map_err(|fault| {
                    let row = i as u64 * rows_per_unit + u64::from(fault.lane);
                    not_finite(row * row_bytes + fault.byte)
                })?;
            }
        }
        PackedLayout::Rows => {
            for (i, row) in rows.chunks_exact(row_bytes as usize).enumerate() {
                if let Some(at) = first_not_finite(format, row) {
                    return Err(not_finite(i as u64 * row_bytes + at));
                }
            }
            out.copy_from_slice(rows);
        }
        PackedLayout::Vector => {
            if let Some(at) = first_not_finite(format, rows) {
                return Err(not_finite(at));
            }
            for (i, out) in out.chunks_exact_mut(4).take(tensor.k as usize).enumerate() {
                out.copy_from_slice(&float_at(format, rows, i).to_le_bytes());
            }
        }
    }
    Ok(())
}

/// Byte offset of the first element or block of a row that is not finite.
fn first_not_finite(format: WeightFormat, row: &[u8]) -> Option<u64> {
    let (i, size) = match format.descriptor() {
        Descriptor::Float { element_bytes } => {
            let size = element_bytes as usize;
            let i = (0..row.len() / size).find(|&i| !float_at(format, row, i).is_finite());
            (i, size)
        }
        Descriptor::Quantized(q) => {
            let size = q.file_block_bytes as usize;
            let i = row
                .chunks_exact(size)
                .position(|b| RawBlock::from_file(format, b).scale_is_not_finite(&q));
            (i, size)
        }
    };
    i.map(|i| (i * size) as u64)
}

fn not_finite(from: &gguf::Tensor<'_>, format: WeightFormat, at: u64) -> ImportError {
    let what = match format.descriptor() {
        Descriptor::Float { .. } => "an element",
        Descriptor::Quantized(_) => "a block scale",
    };
    let row = (at - from.range.start) / from.row_bytes();
    ImportError::new(
        Code::ModelTensor,
        format!(
            "tensor {} ({}) has {what} in row {row} that is NaN or infinite",
            quoted(from.name),
            format.name(),
        ),
    )
    .at(at)
}

impl Source<'_> {
    pub(super) fn read_exact_at(&self, out: &mut [u8], at: u64) -> Result<(), ImportError> {
        let path = self.file.path();
        self.file.file().read_exact_at(out, at).map_err(|e| {
            if e.kind() == io::ErrorKind::UnexpectedEof {
                ImportError::new(
                    Code::ModelTruncated,
                    "the file became shorter while it was read",
                )
                .at(at)
                .in_file(path)
            } else {
                ImportError::io(Code::FileRead, "read", path, &e).at(at)
            }
        })
    }
}
