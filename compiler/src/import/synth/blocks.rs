//! Random blocks of every weight format, with scales such that the weights
//! have a chosen root mean square.

use omex_kernels::WeightFormat;
use omex_kernels::block::dequantize_row;
use omex_kernels::format::{BlockScale, Descriptor, Quantized, SubScales};
use omex_kernels::math::f32_to_f16;

/// SplitMix64 (Steele, Lea, Flood 2014): small, fast and seedable by any number.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A stream of its own for each `name` under one seed.
    pub fn new(seed: u64, name: &str) -> Self {
        let digest = blake3::keyed_hash(&[0; 32], name.as_bytes());
        let name = u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("8 bytes"));
        let mut random = Random(seed);
        Random(random.next_u64() ^ name)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }

    /// Uniform in [-1, 1).
    fn unit(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Writes random weights of one format.
#[derive(Clone, Debug)]
pub struct BlockWriter {
    format: WeightFormat,
    rms: f32,
    /// The scale fields of a block before the random factor.
    d: f32,
    dmin: f32,
}

impl BlockWriter {
    /// A writer of weights with zero mean, where the format can, and the given
    /// root mean square.
    pub fn new(format: WeightFormat, rms: f32) -> Self {
        let mut writer = BlockWriter {
            format,
            rms,
            d: 1.0,
            dmin: 0.0,
        };
        if let Descriptor::Quantized(q) = format.descriptor() {
            writer.dmin = match (q.scale, q.sub_scales) {
                (BlockScale::D | BlockScale::E8M0, _) => 0.0,
                // value = d * code + m, with codes up to 2^bits - 1.
                (BlockScale::DAndMin, SubScales::None) => -code_middle(&q),
                // value = d * scale * code - dmin * min, with scales and
                // minimums of one distribution.
                (BlockScale::DAndMin, _) => code_middle(&q),
            };
            let measured = writer.measure(&q);
            writer.d = rms / measured;
            writer.dmin *= writer.d;
        }
        writer
    }

    /// Root mean square of blocks with the present scale.
    fn measure(&self, q: &Quantized) -> f32 {
        const BLOCKS: usize = 64;
        let mut random = Random::new(0, "measure");
        let mut bytes = vec![0; q.file_block_bytes as usize * BLOCKS];
        let mut values = vec![0.0; q.block_len as usize * BLOCKS];
        self.fill(&mut random, &mut bytes);
        dequantize_row(self.format, &bytes, &mut values);
        let squares: f64 = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        (squares / values.len() as f64).sqrt() as f32
    }

    /// Fills `out`, a whole number of blocks.
    pub fn fill(&self, random: &mut Random, out: &mut [u8]) {
        match self.format.descriptor() {
            Descriptor::Float { element_bytes } => {
                for element in out.chunks_exact_mut(element_bytes as usize) {
                    // Uniform in [-a, a) has the root mean square a / sqrt(3).
                    let value = random.unit() * self.rms * 3f32.sqrt();
                    let bytes = value.to_le_bytes();
                    if self.format == WeightFormat::F16 {
                        element.copy_from_slice(&f32_to_f16(value).to_le_bytes());
                    } else {
                        // BF16 is the upper half of an F32.
                        element.copy_from_slice(&bytes[4 - element.len()..]);
                    }
                }
            }
            Descriptor::Quantized(q) => {
                random.fill(out);
                for block in out.chunks_exact_mut(q.file_block_bytes as usize) {
                    self.set_scale(&q, random.unit(), block);
                }
            }
        }
    }

    /// Sets the scale fields, varied by up to a quarter by `unit`.
    fn set_scale(&self, q: &Quantized, unit: f32, block: &mut [u8]) {
        let factor = 1.0 + 0.25 * unit;
        let half = |v: f32| f32_to_f16(v * factor).to_le_bytes();
        let at = scale_offset(self.format);
        match q.scale {
            BlockScale::D => block[at..at + 2].copy_from_slice(&half(self.d)),
            BlockScale::DAndMin => {
                block[at..at + 2].copy_from_slice(&half(self.d));
                block[at + 2..at + 4].copy_from_slice(&half(self.dmin));
            }
            BlockScale::E8M0 => {
                // The exponent of d; the codes' values are doubled halves, so
                // the scale is 2^(e - 128) times the code.
                let exponent = (self.d.to_bits() >> 23) as u8;
                block[at] = exponent.clamp(1, 254);
            }
        }
    }
}

fn code_middle(q: &Quantized) -> f32 {
    ((1u32 << (q.codes.low + q.codes.high)) - 1) as f32 / 2.0
}

/// Where d lies in a file block; dmin follows it.
fn scale_offset(format: WeightFormat) -> usize {
    match format {
        WeightFormat::Q2K => 80,
        WeightFormat::Q3K => 108,
        WeightFormat::Q6K => 208,
        WeightFormat::F32
        | WeightFormat::F16
        | WeightFormat::BF16
        | WeightFormat::Q4_0
        | WeightFormat::Q4_1
        | WeightFormat::Q5_0
        | WeightFormat::Q5_1
        | WeightFormat::Q8_0
        | WeightFormat::Q4K
        | WeightFormat::Q5K
        | WeightFormat::Iq4Nl
        | WeightFormat::Iq4Xs
        | WeightFormat::Mxfp4 => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_have_the_root_mean_square_asked_for() {
        for format in WeightFormat::ALL {
            for rms in [0.001f32, 0.05, 1.0] {
                let mut values = vec![0.0; 1 << 14];
                let mut bytes = vec![0; format.row_bytes(1 << 14) as usize];
                BlockWriter::new(format, rms).fill(&mut Random::new(7, "test"), &mut bytes);
                dequantize_row(format, &bytes, &mut values);
                assert!(values.iter().all(|v| v.is_finite()), "{}", format.name());
                let n = values.len() as f64;
                let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
                let square = values.iter().map(|&v| f64::from(v * v)).sum::<f64>() / n;
                let ratio = square.sqrt() / f64::from(rms);
                // E8M0 scales are powers of two.
                let low = if format == WeightFormat::Mxfp4 {
                    0.5
                } else {
                    0.9
                };
                assert!(
                    (low..1.15).contains(&ratio),
                    "{} {rms}: {ratio}",
                    format.name()
                );
                assert!(
                    mean.abs() < 0.25 * f64::from(rms),
                    "{} {rms}: mean {mean}",
                    format.name()
                );
            }
        }
    }

    #[test]
    fn streams_depend_on_seed_and_name() {
        let first = |seed, name| Random::new(seed, name).next_u64();
        assert_eq!(first(1, "a"), first(1, "a"));
        assert_ne!(first(1, "a"), first(1, "b"));
        assert_ne!(first(1, "a"), first(2, "a"));
    }
}
