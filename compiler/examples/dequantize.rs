//! Writes the weights of a GGUF file's tensors to stdout as little-endian f32,
//! in file order: the project's side of `tests/oracle/dequant.py`.
//!
//! `dequantize FILE` reads rows as the file stores them; `dequantize FILE
//! --panels` packs every 16 rows into a panel first and reads them back.

use std::error::Error;
use std::io::{BufWriter, Write};
use std::path::Path;

use omex_compiler::import::MappedFile;
use omex_compiler::import::gguf::Gguf;
use omex_kernels::block::dequantize_row;
use omex_kernels::panel::{dequantize_lane, pack_panel};
use omex_kernels::{PANEL_ROWS, WeightFormat};

fn main() {
    if let Err(error) = run() {
        eprintln!("dequantize: {error}");
        std::process::exit(2);
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (path, panels) = match arguments.as_slice() {
        [path] => (path, false),
        [path, flag] if flag == "--panels" => (path, true),
        _ => return Err("usage: dequantize FILE [--panels]".into()),
    };
    let file = MappedFile::open(Path::new(path))?;
    let gguf = Gguf::parse(&file).map_err(|e| e.in_file(file.path()))?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    for tensor in gguf.tensors() {
        let format = WeightFormat::from_ggml_type(tensor.ggml_type.id())
            .ok_or_else(|| format!("{}: type {}", tensor.name, tensor.ggml_type.name()))?;
        let k = u32::try_from(tensor.row_elements())?;
        let row_bytes = usize::try_from(tensor.row_bytes())?;
        let mut values = vec![0.0f32; k as usize];
        let mut panel = vec![0; usize::try_from(format.panel_bytes(k))?];
        for rows in gguf.data(tensor).chunks(row_bytes * PANEL_ROWS as usize) {
            if panels {
                pack_panel(format, k, rows, &mut panel)
                    .map_err(|fault| format!("{}: {fault:?}", tensor.name))?;
            }
            for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
                if panels {
                    dequantize_lane(format, &panel, lane, &mut values);
                } else {
                    dequantize_row(format, row, &mut values);
                }
                for value in &values {
                    out.write_all(&value.to_le_bytes())?;
                }
            }
        }
    }
    out.flush()?;
    Ok(())
}
