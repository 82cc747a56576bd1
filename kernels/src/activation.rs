//! Layout of int8 activation columns.
//!
//! One column of `k` elements (a multiple of 32) is a record of four arrays,
//! each aligned to 64 bytes:
//!
//! | array | element | count |
//! |---|---|---|
//! | codes | i8 in [-127, 127] | k |
//! | scales | f32 d | k / 32 |
//! | scaled sums | f32 `d * float(sum of the 32 codes)` | k / 32 |
//! | sums | i16 sum of 16 codes | k / 16 |

/// Byte offsets within one column record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Q8Layout {
    pub k: u32,
    pub scales_offset: u32,
    pub scaled_sums_offset: u32,
    pub sums_offset: u32,
    /// Bytes of the record, which is also the stride between columns.
    pub stride: u32,
}

impl Q8Layout {
    /// `k` must be a multiple of 32 and at most 2^24.
    pub const fn new(k: u32) -> Q8Layout {
        assert!(k.is_multiple_of(32) && k <= 1 << 24);
        let scales_offset = k.next_multiple_of(64);
        let scaled_sums_offset = scales_offset + (k / 8).next_multiple_of(64);
        let sums_offset = scaled_sums_offset + (k / 8).next_multiple_of(64);
        Q8Layout {
            k,
            scales_offset,
            scaled_sums_offset,
            sums_offset,
            stride: sums_offset + (k / 8).next_multiple_of(64),
        }
    }
}
