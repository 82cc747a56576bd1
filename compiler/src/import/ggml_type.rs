//! The tensor types of ggml: number, name and block size of each.
//!
//! Source: `ggml_type` in ggml's `ggml.h` and the block structures of
//! `ggml-common.h`. All are listed, so that one without a kernel is refused by
//! its name.

macro_rules! ggml_types {
    ($($variant:ident = $id:literal, $name:literal, $elements:literal per $bytes:literal bytes;)*) => {
        /// A tensor type of ggml.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(non_camel_case_types, reason = "the names are ggml's")]
        pub enum GgmlType { $($variant),* }

        impl GgmlType {
            /// Every type, in the order of their numbers.
            pub const ALL: &[GgmlType] = &[$(GgmlType::$variant),*];

            /// The type with this number in GGUF files.
            pub fn from_id(id: u32) -> Option<Self> {
                match id { $($id => Some(Self::$variant),)* _ => None }
            }

            /// The number in GGUF files.
            pub fn id(self) -> u32 {
                match self { $(Self::$variant => $id),* }
            }

            /// The name, as ggml's documentation spells it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// Elements of a block.
            pub fn block_elements(self) -> u64 {
                match self { $(Self::$variant => $elements),* }
            }

            /// Bytes of a block.
            pub fn block_bytes(self) -> u64 {
                match self { $(Self::$variant => $bytes),* }
            }
        }
    };
}

ggml_types! {
    F32 = 0, "F32", 1 per 4 bytes;
    F16 = 1, "F16", 1 per 2 bytes;
    Q4_0 = 2, "Q4_0", 32 per 18 bytes;
    Q4_1 = 3, "Q4_1", 32 per 20 bytes;
    Q5_0 = 6, "Q5_0", 32 per 22 bytes;
    Q5_1 = 7, "Q5_1", 32 per 24 bytes;
    Q8_0 = 8, "Q8_0", 32 per 34 bytes;
    Q8_1 = 9, "Q8_1", 32 per 36 bytes;
    Q2_K = 10, "Q2_K", 256 per 84 bytes;
    Q3_K = 11, "Q3_K", 256 per 110 bytes;
    Q4_K = 12, "Q4_K", 256 per 144 bytes;
    Q5_K = 13, "Q5_K", 256 per 176 bytes;
    Q6_K = 14, "Q6_K", 256 per 210 bytes;
    Q8_K = 15, "Q8_K", 256 per 292 bytes;
    IQ2_XXS = 16, "IQ2_XXS", 256 per 66 bytes;
    IQ2_XS = 17, "IQ2_XS", 256 per 74 bytes;
    IQ3_XXS = 18, "IQ3_XXS", 256 per 98 bytes;
    IQ1_S = 19, "IQ1_S", 256 per 50 bytes;
    IQ4_NL = 20, "IQ4_NL", 32 per 18 bytes;
    IQ3_S = 21, "IQ3_S", 256 per 110 bytes;
    IQ2_S = 22, "IQ2_S", 256 per 82 bytes;
    IQ4_XS = 23, "IQ4_XS", 256 per 136 bytes;
    I8 = 24, "I8", 1 per 1 bytes;
    I16 = 25, "I16", 1 per 2 bytes;
    I32 = 26, "I32", 1 per 4 bytes;
    I64 = 27, "I64", 1 per 8 bytes;
    F64 = 28, "F64", 1 per 8 bytes;
    IQ1_M = 29, "IQ1_M", 256 per 56 bytes;
    BF16 = 30, "BF16", 1 per 2 bytes;
    TQ1_0 = 34, "TQ1_0", 256 per 54 bytes;
    TQ2_0 = 35, "TQ2_0", 256 per 66 bytes;
    MXFP4 = 39, "MXFP4", 32 per 17 bytes;
    NVFP4 = 40, "NVFP4", 64 per 36 bytes;
    Q1_0 = 41, "Q1_0", 128 per 18 bytes;
    Q2_0 = 42, "Q2_0", 64 per 18 bytes;
}

/// The name of a number that ggml once used and gave up.
pub fn removed_type_name(id: u32) -> Option<&'static str> {
    match id {
        4 => Some("Q4_2"),
        5 => Some("Q4_3"),
        31 => Some("Q4_0_4_4"),
        32 => Some("Q4_0_4_8"),
        33 => Some("Q4_0_8_8"),
        36 => Some("IQ4_NL_4_4"),
        37 => Some("IQ4_NL_4_8"),
        38 => Some("IQ4_NL_8_8"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_lead_back() {
        for (i, &ty) in GgmlType::ALL.iter().enumerate() {
            assert_eq!(GgmlType::from_id(ty.id()), Some(ty));
            assert!(removed_type_name(ty.id()).is_none(), "{}", ty.name());
            assert!(ty.block_elements() > 0 && ty.block_bytes() > 0);
            assert!(i == 0 || GgmlType::ALL[i - 1].id() < ty.id());
        }
        assert_eq!(GgmlType::from_id(255), None);
    }
}
