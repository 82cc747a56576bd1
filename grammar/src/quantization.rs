//! Names of weight quantizations.

use std::fmt;

use pest::Parser;
use pest_derive::Parser;

use crate::SyntaxError;

#[derive(Parser)]
#[grammar = "quantization.pest"]
struct QuantizationParser;

/// What weights are to be stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Quantization {
    /// Any format of this many bits per weight: `int4`, `q8`.
    Width {
        bits: u8,
    },
    Format(QuantizationFormat),
}

macro_rules! formats {
    ($($variant:ident $name:literal $bits:literal,)*) => {
        /// A file type as GGUF names it. Mixtures (`q4_k_m`) are named by their main format.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(non_camel_case_types, reason = "these are the names of the field")]
        pub enum QuantizationFormat {
            $($variant,)*
        }

        impl QuantizationFormat {
            pub const ALL: &[QuantizationFormat] = &[$(QuantizationFormat::$variant,)*];

            /// The name in lower case, as in `q4_k_m`.
            pub fn name(self) -> &'static str {
                match self { $(QuantizationFormat::$variant => $name,)* }
            }

            /// Bits per weight of the main format, without its scales.
            pub fn bits(self) -> u8 {
                match self { $(QuantizationFormat::$variant => $bits,)* }
            }
        }
    };
}

formats! {
    F32 "f32" 32,
    F16 "f16" 16,
    BF16 "bf16" 16,
    Q4_0 "q4_0" 4,
    Q4_1 "q4_1" 4,
    Q5_0 "q5_0" 5,
    Q5_1 "q5_1" 5,
    Q8_0 "q8_0" 8,
    Q2_K "q2_k" 2,
    Q2_K_S "q2_k_s" 2,
    Q3_K "q3_k" 3,
    Q3_K_S "q3_k_s" 3,
    Q3_K_M "q3_k_m" 3,
    Q3_K_L "q3_k_l" 3,
    Q4_K "q4_k" 4,
    Q4_K_S "q4_k_s" 4,
    Q4_K_M "q4_k_m" 4,
    Q5_K "q5_k" 5,
    Q5_K_S "q5_k_s" 5,
    Q5_K_M "q5_k_m" 5,
    Q6_K "q6_k" 6,
    IQ4_NL "iq4_nl" 4,
    IQ4_XS "iq4_xs" 4,
    MXFP4 "mxfp4" 4,
}

/// Widths that some format has.
const WIDTHS: [u8; 8] = [2, 3, 4, 5, 6, 8, 16, 32];

impl Quantization {
    /// # Errors
    ///
    /// The text is neither a width nor the name of a format.
    pub fn parse(text: &str) -> Result<Quantization, SyntaxError> {
        parse_at(text, 0)
    }

    /// Bits per weight, without scales.
    pub fn bits(self) -> u8 {
        match self {
            Quantization::Width { bits } => bits,
            Quantization::Format(format) => format.bits(),
        }
    }

    /// Names to suggest for a mistyped one.
    pub fn names() -> impl Iterator<Item = &'static str> {
        let widths = ["int4", "int8", "q4", "q8"].into_iter();
        widths.chain(QuantizationFormat::ALL.iter().map(|format| format.name()))
    }
}

/// As [`Quantization::parse`], for a text that starts at `offset` of a longer one.
pub(crate) fn parse_at(text: &str, offset: usize) -> Result<Quantization, SyntaxError> {
    let unknown = || {
        SyntaxError::new(
            offset..offset + text.len(),
            "this quantization is not known",
        )
    };
    let mut pairs = QuantizationParser::parse(Rule::quantization, text).map_err(|_| unknown())?;
    let pair = pairs
        .next()
        .and_then(|quantization| quantization.into_inner().next())
        .expect("a parsed quantization is a width or a format");
    if pair.as_rule() == Rule::width {
        let bits = pair.into_inner().next().expect("a width has bits");
        let bits: u8 = bits.as_str().parse().map_err(|_| unknown())?;
        return match WIDTHS.contains(&bits) {
            true => Ok(Quantization::Width { bits }),
            false => Err(unknown()),
        };
    }
    let name = pair.as_str().to_ascii_lowercase();
    let format = QuantizationFormat::ALL
        .iter()
        .find(|format| format.name() == name);
    format
        .map(|&format| Quantization::Format(format))
        .ok_or_else(unknown)
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Quantization::Width { bits } => write!(f, "q{bits}"),
            Quantization::Format(format) => f.write_str(format.name()),
        }
    }
}
