//! Rotary position embedding: the scalings that metadata and tensors state.
//!
//! Every scaling comes down to a divisor, a factor per pair and a factor of the
//! cosines and sines. Linear scaling divides; the NTK-aware one changes the
//! base; Llama 3's is in the file as factors; LongRoPE (arXiv 2402.13753) has
//! two sets of factors, of which the context chooses one; YaRN (arXiv
//! 2309.00071) blends interpolated and original frequencies.

use omex_kernels::math::{ln_f64, pow_f64};
use omex_kernels::spec::{F32, RopePairing};

use super::keys::{Keys, Neutral};
use crate::diagnostic::{Code, quoted};
use crate::import::ImportError;
use crate::ir::Frequencies;

/// Least divisor of a frequency: with less, angles lose the precision that they are
/// computed with. Those of models are about 1 and more.
pub(super) const FACTOR_MIN: f32 = 1.0 / 16.0;

/// Rotary position embedding of a model.
///
/// The inverse frequency of pair `i` is
/// `base^(-2 i / dimension_count) / position_divisor / factors[i]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Elements of a head that are rotated; even, at most the head's length.
    pub dimension_count: u32,
    pub pairing: RopePairing,
    pub base: f32,
    /// Linear scaling: positions are divided by this; 1 without scaling.
    pub position_divisor: f32,
    pub factors: Factors,
    /// Factor of the cosines and sines.
    pub scale: f32,
}

/// What divides each pair's frequency.
#[derive(Clone, Debug, PartialEq)]
pub enum Factors {
    None,
    /// One per pair.
    Fixed(Vec<f32>),
    /// LongRoPE's sets; both are empty until their tensors are read.
    ByContext {
        /// Contexts above this take the long set.
        original_context: u32,
        short: Vec<f32>,
        long: Vec<f32>,
    },
}

impl Rope {
    /// A rotation without scaling.
    pub fn plain(dimension_count: u32, pairing: RopePairing, base: f32) -> Rope {
        Rope {
            dimension_count,
            pairing,
            base,
            position_divisor: 1.0,
            factors: Factors::None,
            scale: 1.0,
        }
    }

    pub fn pairs(&self) -> u32 {
        self.dimension_count / 2
    }

    /// The inverse frequencies of a cache of `context` positions.
    pub fn frequencies(&self, context: u32) -> Frequencies {
        let factors: &[f32] = match &self.factors {
            Factors::None => &[],
            Factors::Fixed(factors) => factors,
            Factors::ByContext {
                original_context,
                short,
                long,
            } => {
                if context > *original_context {
                    long
                } else {
                    short
                }
            }
        };
        Frequencies {
            base: F32::new(self.base),
            divisor: F32::new(self.position_divisor),
            width: self.dimension_count,
            factors: factors.iter().map(|&f| F32::new(f)).collect(),
        }
    }
}

/// Reads the rotation of the layers that see every position.
pub(super) fn read(
    keys: &Keys<'_, '_>,
    pairing: RopePairing,
    head_len: u32,
    context_len: u32,
) -> Result<Rope, ImportError> {
    let dimension_count = keys
        .optional_count("rope.dimension_count")?
        .unwrap_or(head_len);
    if !dimension_count.is_multiple_of(2) || dimension_count > head_len {
        return Err(keys.fault(
            "rope.dimension_count",
            format!(
                "{dimension_count} elements of a head of {head_len} cannot be rotated in pairs"
            ),
        ));
    }
    let base = keys.positive("rope.freq_base")?.unwrap_or(10_000.0);
    if base < 1.0 {
        return Err(keys.fault(
            "rope.freq_base",
            format!("with {base:?}, pairs turn further from pair to pair, not less"),
        ));
    }
    let mut rope = Rope::plain(
        dimension_count,
        pairing,
        ntk_base(keys, base, dimension_count)?,
    );
    let factor = match keys.positive_or_zero("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.positive_or_zero("rope.scale_linear")?,
    };
    let factor = factor.unwrap_or(1.0);
    if factor < FACTOR_MIN {
        return Err(keys.fault(
            "rope.scaling.factor",
            format!("{factor:?} is below {FACTOR_MIN:?}"),
        ));
    }
    let attention_factor = keys.positive("rope.scaling.attn_factor")?.unwrap_or(1.0);
    let original_context = keys
        .optional_count("rope.scaling.original_context_length")?
        .unwrap_or(context_len);
    match keys.gguf.get_str(&keys.name("rope.scaling.type"))? {
        // llama.cpp takes a factor without a type as linear scaling.
        None | Some("linear") => rope.position_divisor = factor,
        Some("none") => {}
        Some("yarn") => yarn(keys, &mut rope, f64::from(factor), original_context)?,
        Some("longrope") => {
            keys.refuse_unless("rope.scaling.factor", Neutral::Number(1.0))?;
            keys.refuse_unless("rope.scale_linear", Neutral::Number(1.0))?;
            rope.factors = Factors::ByContext {
                original_context,
                short: Vec::new(),
                long: Vec::new(),
            };
        }
        Some(other) => {
            return Err(keys
                .fault(
                    "rope.scaling.type",
                    format!(
                        "RoPE scaling of type {} is not supported; none, linear, yarn and longrope are",
                        quoted(other)
                    ),
                )
                .code(Code::ModelUnsupported));
        }
    }
    rope.scale *= attention_factor;
    if rope.scale.is_finite() {
        Ok(rope)
    } else {
        Err(keys.fault(
            "rope.scaling.attn_factor",
            "the factor of the angles overflows",
        ))
    }
}

/// The base under NTK-aware scaling, `base * alpha^(n / (n - 2))`.
fn ntk_base(keys: &Keys<'_, '_>, base: f32, width: u32) -> Result<f32, ImportError> {
    const KEY: &str = "rope.scaling.alpha";
    let Some(alpha) = keys.positive_or_zero(KEY)? else {
        return Ok(base);
    };
    if width <= 2 {
        return Err(keys.fault(KEY, format!("{width} rotated elements have no scaled base")));
    }
    let exponent = f64::from(width) / f64::from(width - 2);
    let scaled = (f64::from(base) * pow_f64(f64::from(alpha), exponent)) as f32;
    if scaled.is_finite() && scaled >= 1.0 {
        Ok(scaled)
    } else {
        Err(keys.fault(KEY, format!("{alpha:?} gives the base {scaled}")))
    }
}

/// YaRN as transformers and llama.cpp compute it: pairs that turn more than
/// `beta_fast` times within the original context keep their frequency, those
/// below `beta_slow` turns are interpolated by `factor`, a ramp lies between.
fn yarn(
    keys: &Keys<'_, '_>,
    rope: &mut Rope,
    factor: f64,
    original_context: u32,
) -> Result<(), ImportError> {
    let beta = |key: &str, default: f32| -> Result<f64, ImportError> {
        Ok(f64::from(keys.positive(key)?.unwrap_or(default)))
    };
    let beta_fast = beta("rope.scaling.yarn_beta_fast", 32.0)?;
    let beta_slow = beta("rope.scaling.yarn_beta_slow", 1.0)?;
    let all_dimensions = keys.positive_or_zero("rope.scaling.yarn_log_multiplier")?;
    if rope.base <= 1.0 {
        return Err(keys.fault(
            "rope.freq_base",
            format!("YaRN needs more than {}", rope.base),
        ));
    }
    let width = f64::from(rope.dimension_count);
    // The (fractional) pair that turns so many times.
    let pair_of = |turns: f64| {
        let ratio = f64::from(original_context) / (turns * 2.0 * std::f64::consts::PI);
        width * ln_f64(ratio) / (2.0 * ln_f64(f64::from(rope.base)))
    };
    let low = pair_of(beta_fast).floor().max(0.0);
    let high = pair_of(beta_slow).ceil().min(width - 1.0);
    let span = (high - low).max(0.001);
    let factors = (0..rope.pairs()).map(|i| {
        let interpolated = ((f64::from(i) - low) / span).clamp(0.0, 1.0);
        (1.0 / (interpolated / factor + (1.0 - interpolated))) as f32
    });
    rope.factors = Factors::Fixed(factors.collect());
    let scale_of = |multiplier: f64| {
        if factor <= 1.0 {
            1.0
        } else {
            0.1 * multiplier * ln_f64(factor) + 1.0
        }
    };
    let divisor = all_dimensions.map_or(1.0, |m| scale_of(f64::from(m)));
    rope.scale = (scale_of(1.0) / divisor) as f32;
    Ok(())
}
