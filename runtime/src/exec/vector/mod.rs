//! Sixteen f32 in the registers of a CPU.
//!
//! Intrinsics have no safe form outside functions with their CPU features: these
//! files make the one claim that they are there.

mod avx2;
mod avx512;

pub(super) use avx2::Avx2;
pub(super) use avx512::Avx512;

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use super::*;
    use omex_kernels::lanes::{LANES, Lanes};

    #[target_feature(enable = "avx2,f16c")]
    fn operations_avx2() -> Vec<[[f32; LANES]; 2]> {
        operations::<Avx2>()
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn operations_avx512() -> Vec<[[f32; LANES]; 2]> {
        operations::<Avx512>()
    }

    /// Pairs of what an operation gives and what the contract says.
    #[inline(always)]
    fn operations<V: Lanes>() -> Vec<[[f32; LANES]; 2]> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            state
        };
        let mut pairs = Vec::new();
        let mut put = |a: V, b: [f32; LANES]| {
            let mut stored = [0.0; LANES];
            a.store(&mut stored);
            pairs.push([stored, b]);
        };
        for round in 0..20_000 {
            let x: [f32; LANES] = std::array::from_fn(|_| {
                let bits = next();
                let x = f32::from_bits(bits);
                let small = (bits as f32 / u32::MAX as f32 - 0.5) * 200.0;
                if round % 2 == 0 && x.is_finite() {
                    x
                } else {
                    small
                }
            });
            let y: [f32; LANES] = std::array::from_fn(|i| x[(i + 5) % LANES]);
            let (a, b) = (V::load(&x), V::load(&y));
            put(a.add(b), x.add(y));
            put(a.sub(b), x.sub(y));
            put(a.mul(b), x.mul(y));
            put(a.div(b), x.div(y));
            put(a.max(b), x.max(y));
            put(a.exp(), x.exp());
            put(V::splat(x[3]), Lanes::splat(x[3]));
            let (mut got, mut expected) = ([0; LANES], [0; LANES]);
            a.to_f16(&mut got);
            x.to_f16(&mut expected);
            assert_eq!(got, expected, "halves of {x:?}");
            assert_eq!(a.magnitude_bits_max(b), x.magnitude_bits_max(y), "{x:?}");
            let codes = x.map(|x| x.clamp(-127.49, 127.49));
            let (mut got, mut expected) = ([0; LANES], [0; LANES]);
            let sum = V::load(&codes).to_i8(&mut got);
            assert_eq!(sum, codes.to_i8(&mut expected), "sum of {codes:?}");
            assert_eq!(got, expected, "codes of {codes:?}");
            let halves: [u16; LANES] = std::array::from_fn(|_| {
                let half = (next() >> 16) as u16;
                if half & 0x7c00 == 0x7c00 {
                    half & 0x83ff
                } else {
                    half
                }
            });
            put(V::from_f16(&halves), Lanes::from_f16(&halves));
            let codes: [i8; LANES] = std::array::from_fn(|_| (next() >> 24) as i8);
            put(V::from_i8(&codes), Lanes::from_i8(&codes));
        }
        pairs
    }

    fn check(pairs: Vec<[[f32; LANES]; 2]>) {
        for [got, expected] in pairs {
            // Which NaN it is, the contract leaves open.
            let same =
                |(g, e): (&f32, &f32)| g.to_bits() == e.to_bits() || e.is_nan() && g.is_nan();
            assert!(
                got.iter().zip(&expected).all(same),
                "{got:?}, not {expected:?}"
            );
        }
    }

    #[test]
    fn operations_are_those_of_the_contract() {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
            // SAFETY: the CPU has the features.
            check(unsafe { operations_avx2() });
        }
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
        {
            // SAFETY: the CPU has the features.
            check(unsafe { operations_avx512() });
        }
    }
}
