//! What the tests of kernels share.

/// A linear congruential generator (Numerical Recipes).
pub(crate) struct Random(pub(crate) u32);

impl Random {
    /// 24 bits.
    pub(crate) fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1664525).wrapping_add(1013904223);
        self.0 >> 8
    }

    /// In [-1, 1).
    pub(crate) fn uniform(&mut self) -> f32 {
        self.next() as f32 / 8388608.0 - 1.0
    }
}
