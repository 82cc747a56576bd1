use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use omex_kernels::WeightFormat;
use omex_kernels::block::{dequantize_row, float_at};
use omex_kernels::panel::dequantize_lane;
use omex_plan::packed::{PACKED_HEADER_BYTES, PAGE_ALIGN};

use super::*;
use crate::diagnostic::Code;
use crate::import::family::ModelConfig;
use crate::import::synth::{Family, Mix, Shape, write_model};

/// A directory of its own for each test, removed afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("omex-pack-{}-{n}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn cache(&self) -> PathBuf {
        self.0.join("cache")
    }

    /// Names of the files in the cache, the lock apart.
    fn cached(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.cache())
            .map(|entries| {
                entries
                    .map(|e| e.unwrap().file_name().into_string().unwrap())
                    .filter(|name| name != ".lock")
                    .collect()
            })
            .unwrap_or_default();
        names.sort();
        names
    }

    fn write_model(&self, shape: &Shape, mix: &str) -> PathBuf {
        let path = self.0.join("model.gguf");
        let mut out = Vec::new();
        write_model(&mut out, shape, mix.parse::<Mix>().unwrap(), 1, None).unwrap();
        fs::write(&path, out).unwrap();
        path
    }

    fn pack(&self, model: &Path) -> Result<PackedModel, ImportError> {
        self.pack_with(model, 2, &|_| {})
    }

    fn pack_with(
        &self,
        model: &Path,
        threads: usize,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<PackedModel, ImportError> {
        let file = MappedFile::open(model)?;
        let gguf = Gguf::parse(&file)?;
        let order = ModelConfig::from_gguf(&gguf)?.weights.in_schedule_order();
        let source = Source {
            file: &file,
            gguf: &gguf,
        };
        pack_into_cache(&source, &order, &self.cache(), threads, progress)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Several pages; a vocabulary that is no multiple of 16.
fn shape() -> Shape {
    Shape {
        family: Family::Llama,
        layers: 5,
        embedding_len: 256,
        heads: 4,
        kv_heads: 2,
        head_len: 64,
        feed_forward_len: 512,
        vocabulary_len: 1003,
        context_len: 64,
        rope_base: 1e4,
        rms_epsilon: 1e-5,
        tied: false,
        biases: true,
    }
}

/// Every unit of every tensor lies where the index says and holds the weights
/// of the model file.
fn check(packed: &PackedModel, model: &Path) {
    let bytes = fs::read(&packed.path).unwrap();
    assert_eq!(bytes.len() as u64, packed.file_bytes);
    let file = fs::File::open(&packed.path).unwrap();
    let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0));
    assert_eq!(hole, Ok(packed.file_bytes), "the file has holes");
    let mut end = PACKED_HEADER_BYTES;
    for page in &packed.index.pages {
        assert!(page.file_offset >= end && page.file_offset.is_multiple_of(PAGE_ALIGN));
        end = page.file_offset + page.bytes;
        let content = &bytes[page.file_offset as usize..end as usize];
        assert_eq!(*blake3::hash(content).as_bytes(), page.digest);
    }
    let model = fs::read(model).unwrap();
    let gguf = Gguf::parse(&model).unwrap();
    assert_eq!(packed.index.source_digest, *blake3::hash(&model).as_bytes());
    assert!(packed.index.pages.len() > 1, "the test needs several pages");
    assert_eq!(packed.index.tensors.len(), gguf.tensors().len());
    for tensor in &packed.index.tensors {
        let source = gguf.tensor(&tensor.name).unwrap();
        let format = WeightFormat::from_ggml_type(source.ggml_type.id()).unwrap();
        let (units, unit_bytes) = tensor.unit().unwrap();
        let k = tensor.k as usize;
        let (mut expected, mut actual) = (vec![0.0; k], vec![0.0; k]);
        let mut next_unit = 0;
        for piece in &tensor.pieces {
            assert_eq!(piece.first_unit, next_unit);
            assert!(piece.offset.is_multiple_of(64));
            next_unit += piece.units;
            let page = &packed.index.pages[piece.page.index()];
            assert!(piece.offset + u64::from(piece.units) * unit_bytes <= page.bytes);
            for i in 0..piece.units {
                let start = page.file_offset + piece.offset + u64::from(i) * unit_bytes;
                let unit = &bytes[start as usize..(start + unit_bytes) as usize];
                let lanes = match tensor.layout {
                    PackedLayout::Panels => 16,
                    PackedLayout::Rows | PackedLayout::Vector => 1,
                };
                for lane in 0..lanes {
                    let row = ((piece.first_unit + i) * lanes + lane) as usize;
                    let row_bytes = source.row_bytes() as usize;
                    match tensor.layout {
                        PackedLayout::Panels => {
                            dequantize_lane(format, unit, lane as usize, &mut actual);
                        }
                        PackedLayout::Rows => dequantize_row(format, unit, &mut actual),
                        PackedLayout::Vector => {
                            for (i, v) in actual.iter_mut().enumerate() {
                                *v = float_at(WeightFormat::F32, unit, i);
                            }
                        }
                    }
                    if row < source.rows() as usize {
                        let row = &gguf.data(source)[row * row_bytes..][..row_bytes];
                        dequantize_row(format, row, &mut expected);
                        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                        assert_eq!(bits(&actual), bits(&expected), "{}", tensor.name);
                    }
                }
            }
        }
        assert_eq!(next_unit, units, "{}", tensor.name);
    }
}

#[test]
fn every_format_is_packed_and_found_again() {
    let names = WeightFormat::ALL.iter().map(|f| f.name());
    for name in names.chain(["Q4_K_M"]) {
        for tied in [false, true] {
            let folder = Folder::new();
            let model = folder.write_model(&Shape { tied, ..shape() }, name);
            let packed = folder.pack(&model).unwrap();
            check(&packed, &model);
            assert_eq!(folder.cached(), [file_name(&packed.digest)]);
            assert_eq!(open(&packed.path).unwrap(), packed);

            let inode = fs::metadata(&packed.path).unwrap().ino();
            assert_eq!(folder.pack(&model).unwrap(), packed);
            assert_eq!(
                fs::metadata(&packed.path).unwrap().ino(),
                inode,
                "packed once"
            );
        }
    }
}

#[test]
fn the_bytes_do_not_depend_on_threads_or_place() {
    let digests: Vec<_> = [1, 2, 3, 16]
        .map(|threads| {
            let folder = Folder::new();
            let model = folder.write_model(&shape(), "q5_k");
            let packed = folder.pack_with(&model, threads, &|_| {}).unwrap();
            let bytes = fs::read(&packed.path).unwrap();
            (packed.digest, blake3::hash(&bytes))
        })
        .into();
    assert!(digests.iter().all(|d| *d == digests[0]));
}

/// Packed bytes are at most 3% above the file's, for every format.
#[test]
fn packing_widens_nothing() {
    for format in WeightFormat::ALL {
        let shape = Shape {
            layers: 1,
            embedding_len: 2048,
            head_len: 512,
            feed_forward_len: 2048,
            vocabulary_len: 2048,
            biases: false,
            ..shape()
        };
        let mut bytes = Vec::new();
        write_model(&mut bytes, &shape, Mix::Uniform(format), 1, None).unwrap();
        let gguf = Gguf::parse(&bytes).unwrap();
        let order = ModelConfig::from_gguf(&gguf)
            .unwrap()
            .weights
            .in_schedule_order();
        let size = packed_size(&gguf, &order).unwrap();
        let file_bytes: u64 = gguf.tensors().iter().map(|t| t.size_bytes()).sum();
        let ratio = size.file_bytes as f64 / file_bytes as f64;
        assert!(size.weights_bytes <= size.file_bytes);
        assert!(ratio <= 1.03, "{}: {ratio}", format.name());
    }
}

/// Where ggml stores the scales of a block, of which two bytes are f16 and one is E8M0.
fn scale_offsets(format: WeightFormat) -> &'static [u64] {
    use WeightFormat::*;
    match format {
        F32 | F16 | BF16 | Q4_0 | Q5_0 | Q8_0 | Iq4Nl | Iq4Xs | Mxfp4 => &[0],
        Q4_1 | Q5_1 | Q4K | Q5K => &[0, 2],
        Q2K => &[80, 82],
        Q3K => &[108],
        Q6K => &[208],
    }
}

/// NaNs and infinities as a file spells them in this format's scales, or elements.
fn not_finite(format: WeightFormat) -> &'static [&'static [u8]] {
    use WeightFormat::*;
    match format {
        F32 => &[
            &[0, 0, 0x80, 0x7f],
            &[0, 0, 0x80, 0xff],
            &[1, 0, 0x80, 0x7f],
            &[0, 0, 0xc0, 0xff],
        ],
        BF16 => &[&[0x80, 0x7f], &[0x80, 0xff], &[0x81, 0x7f], &[0xff, 0xff]],
        Mxfp4 => &[&[0xff]],
        F16 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Q2K | Q3K | Q4K | Q5K | Q6K | Iq4Nl | Iq4Xs => {
            &[&[0, 0x7c], &[0, 0xfc], &[1, 0x7c], &[0xff, 0xff]]
        }
    }
}

/// In every scale of a block, in the last block of a row of panels and of a row-major
/// table, and in vectors.
#[test]
fn weights_that_are_not_finite_are_refused() {
    for format in WeightFormat::ALL {
        let folder = Folder::new();
        let model = folder.write_model(
            &Shape {
                layers: 1,
                ..shape()
            },
            format.name(),
        );
        let sound = fs::read(&model).unwrap();
        let gguf = Gguf::parse(&sound).unwrap();
        let file = OpenOptions::new().write(true).open(&model).unwrap();
        let refuse = |tensor: &str, row: u64, in_row: u64, bytes: &[u8]| {
            let t = gguf.tensor(tensor).unwrap();
            let row_start = t.range.start + row * t.row_bytes();
            let at = row_start + in_row;
            file.write_all_at(bytes, at).unwrap();
            let error = folder.pack(&model).expect_err(tensor);
            file.write_all_at(&sound[at as usize..][..bytes.len()], at)
                .unwrap();
            assert_eq!(error.code, Code::ModelTensor, "{error}");
            let offset = error.offset_bytes.unwrap();
            assert!((row_start..=at).contains(&offset), "{error}");
            assert_eq!(error.file.as_deref(), Some(model.as_path()));
            let message = format!("row {row} that is NaN or infinite");
            assert!(error.message.contains(tensor), "{error}");
            assert!(error.message.contains(&message), "{error}");
            assert_eq!(folder.cached(), [""; 0], "nothing is left behind");
        };
        for tensor in ["blk.0.ffn_up.weight", "token_embd.weight"] {
            let row_bytes = gguf.tensor(tensor).unwrap().row_bytes();
            let last = row_bytes - format.row_bytes(format.k_multiple());
            for &at in scale_offsets(format) {
                for bytes in not_finite(format) {
                    refuse(tensor, 17, last + at, bytes);
                }
            }
        }
        for tensor in ["blk.0.attn_q.bias", "output_norm.weight"] {
            refuse(tensor, 0, 12, not_finite(WeightFormat::F32)[1]);
        }
        folder.pack(&model).unwrap();
    }
}

#[test]
fn a_source_that_changes_is_refused() {
    let truncate = |file: &File| {
        let len = file.metadata().unwrap().len();
        file.set_len(len - 4096).unwrap();
    };
    let touch = |mut file: &File| file.write_all(b"GGUF").unwrap();
    type Change<'a> = &'a (dyn Fn(&File) + Sync);
    let cases: [(Change<'_>, Code, &str); 2] = [
        (&truncate, Code::ModelTruncated, "became shorter"),
        (&touch, Code::FileRead, "changed while it was packed"),
    ];
    for (change, code, message) in cases {
        let folder = Folder::new();
        let model = folder.write_model(&shape(), "q4_0");
        let file = OpenOptions::new().write(true).open(&model).unwrap();
        let file = Mutex::new(Some(file));
        let error = folder
            .pack_with(&model, 1, &|progress| {
                if let Progress::Packing { .. } = progress
                    && let Some(file) = file.lock().unwrap().take()
                {
                    change(&file);
                }
            })
            .expect_err(message);
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(message), "{error}");
        assert_eq!(folder.cached(), [""; 0]);
    }
}

#[test]
fn builders_on_one_cache_take_turns() {
    let folder = Folder::new();
    let model = folder.write_model(&shape(), "q4_1");
    fs::create_dir_all(folder.cache()).unwrap();
    fs::write(
        folder.cache().join(".omex-1-0.tmp"),
        "left by a killed builder",
    )
    .unwrap();
    let results: Vec<_> = std::thread::scope(|scope| {
        let builders: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| folder.pack(&model).unwrap()))
            .collect();
        builders.into_iter().map(|b| b.join().unwrap()).collect()
    });
    assert!(results.iter().all(|r| *r == results[0]));
    assert_eq!(folder.cached(), [file_name(&results[0].digest)]);
    check(&results[0], &model);
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let folder = Folder::new();
    let model = folder.write_model(&shape(), "q4_1");
    fs::write(folder.cache(), "a file, not a directory").unwrap();
    let error = folder.pack(&model).unwrap_err();
    assert_eq!(error.code, Code::FileWrite, "{error}");
    assert_eq!(error.file, Some(folder.cache()));
}

/// A damaged packed model is never taken for a sound one, and a build replaces it.
#[test]
fn damaged_packed_models_are_refused() {
    let folder = Folder::new();
    let model = folder.write_model(&shape(), "q4_1");
    let packed = folder.pack(&model).unwrap();
    let sound = fs::read(&packed.path).unwrap();
    let index_end = PACKED_HEADER_BYTES as usize + packed.index.encode().len();
    let path = folder.0.join("damaged.omex");
    for byte in (0..64).chain((64..index_end).step_by(97)) {
        for bit in [0, 7] {
            let mut bytes = sound.clone();
            bytes[byte] ^= 1 << bit;
            fs::write(&path, bytes).unwrap();
            let error = open(&path).expect_err("a flipped bit");
            let expected = if (8..12).contains(&byte) {
                Code::PlanVersion
            } else {
                Code::ModelDigest
            };
            assert_eq!(error.code, expected, "byte {byte}: {error}");
        }
    }
    for len in [0, 1, 63, 64, index_end, sound.len() - 1] {
        fs::write(&path, &sound[..len]).unwrap();
        assert_eq!(open(&path).unwrap_err().code, Code::ModelDigest, "{len}");
    }
    // Under its final name.
    fs::write(&packed.path, &sound[..sound.len() - 1]).unwrap();
    assert_eq!(folder.pack(&model).unwrap(), packed);
    assert_eq!(fs::read(&packed.path).unwrap(), sound);
}
