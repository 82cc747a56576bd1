//! Which format each matrix of a model has, as `llama-quantize` chooses without an
//! importance matrix (`llama_tensor_get_type_impl` in llama.cpp's `llama-quant.cpp`).

use std::str::FromStr;

use omex_kernels::WeightFormat;

/// The formats of a model's matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// One format for all matrices; the output head of a quantized one is Q6_K.
    Uniform(WeightFormat),
    Recipe(Recipe),
}

/// File types of llama.cpp that give some matrices more bits than others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    Q2K,
    Q2KS,
    Q3KM,
    Q3KL,
    Q4KS,
    Q4KM,
    Q5KM,
    Iq4Nl,
    Iq4Xs,
}

/// What a matrix does, as far as its format depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Embedding,
    /// The output head, or the embedding that is it as well.
    Output,
    Value,
    AttentionOutput,
    Down,
    /// Query, key, gate, up.
    Other,
}

/// Where a matrix is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) role: Role,
    pub(super) layer: u32,
    pub(super) layers: u32,
    /// Query heads that share a key-value head.
    pub(super) group: u32,
}

impl Recipe {
    const ALL: [(&'static str, Recipe); 9] = [
        ("Q2_K", Recipe::Q2K),
        ("Q2_K_S", Recipe::Q2KS),
        ("Q3_K_M", Recipe::Q3KM),
        ("Q3_K_L", Recipe::Q3KL),
        ("Q4_K_S", Recipe::Q4KS),
        ("Q4_K_M", Recipe::Q4KM),
        ("Q5_K_M", Recipe::Q5KM),
        ("IQ4_NL", Recipe::Iq4Nl),
        ("IQ4_XS", Recipe::Iq4Xs),
    ];

    /// The format of matrices that the recipe has no rule for.
    fn base(self) -> WeightFormat {
        match self {
            Recipe::Q2K | Recipe::Q2KS => WeightFormat::Q2K,
            Recipe::Q3KM | Recipe::Q3KL => WeightFormat::Q3K,
            Recipe::Q4KS | Recipe::Q4KM => WeightFormat::Q4K,
            Recipe::Q5KM => WeightFormat::Q5K,
            Recipe::Iq4Nl => WeightFormat::Iq4Nl,
            Recipe::Iq4Xs => WeightFormat::Iq4Xs,
        }
    }

    fn format(self, place: Place) -> WeightFormat {
        use WeightFormat::{Q3K, Q4K, Q5K, Q6K};
        let Place {
            role,
            layer,
            layers,
            group,
        } = place;
        let first_eighth = layer < layers / 8;
        // The first and last eighth, and every third layer between.
        let more_bits = first_eighth || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
        let special = match (self, role) {
            (_, Role::Output) => Some(Q6K),
            (_, Role::Embedding | Role::Other) => None,
            (Recipe::Q2K, Role::Value) => Some(if group >= 4 { Q4K } else { Q3K }),
            (Recipe::Q2K, Role::AttentionOutput | Role::Down) => Some(Q3K),
            (Recipe::Q2KS, Role::Value) => Some(Q4K).filter(|_| group >= 4),
            (Recipe::Q2KS, Role::Down) => Some(Q4K).filter(|_| first_eighth),
            (Recipe::Q3KM, Role::Value) => Some(if layer < 2 { Q5K } else { Q4K }),
            (Recipe::Q3KM, Role::Down) => Some(if layer < layers / 16 { Q5K } else { Q4K }),
            (Recipe::Q3KM, Role::AttentionOutput) => Some(Q4K),
            (Recipe::Q3KL, Role::Value | Role::Down | Role::AttentionOutput) => Some(Q5K),
            (Recipe::Q4KS, Role::Value) => Some(Q5K).filter(|_| layer < 4),
            (Recipe::Q4KS, Role::Down) => Some(Q5K).filter(|_| first_eighth),
            (Recipe::Q4KM | Recipe::Q5KM, Role::Value | Role::Down) => {
                Some(Q6K).filter(|_| more_bits)
            }
            (Recipe::Iq4Nl | Recipe::Iq4Xs, Role::Value) => Some(Q5K).filter(|_| group >= 4),
            (Recipe::Iq4Nl | Recipe::Iq4Xs, Role::Down) => Some(Q5K).filter(|_| first_eighth),
            (
                Recipe::Q2KS
                | Recipe::Q4KS
                | Recipe::Q4KM
                | Recipe::Q5KM
                | Recipe::Iq4Nl
                | Recipe::Iq4Xs,
                Role::AttentionOutput,
            ) => None,
        };
        special.unwrap_or(self.base())
    }
}

impl Mix {
    /// The mix that llama.cpp makes for a file type; `pure` keeps to one format where the
    /// type names one, as its `--pure` does.
    ///
    /// # Errors
    /// A sentence with the names that are known.
    pub fn of_file_type(name: &str, pure: bool) -> Result<Mix, String> {
        let upper = name.to_ascii_uppercase();
        let recipe = Recipe::ALL.iter().find(|(name, _)| *name == upper);
        let recipe = recipe.map(|&(_, recipe)| Mix::Recipe(recipe));
        // The small variants of these have no rules of their own.
        let plain = match upper.as_str() {
            "Q3_K_S" => "Q3_K",
            "Q5_K_S" => "Q5_K",
            name => name,
        };
        let uniform = WeightFormat::from_name(plain).map(Mix::Uniform);
        let found = if pure {
            uniform.or(recipe)
        } else {
            recipe.or(uniform)
        };
        found.ok_or_else(|| {
            let formats = WeightFormat::ALL.iter().map(|format| format.name());
            let recipes = Recipe::ALL.iter().map(|(name, _)| *name);
            let mut names: Vec<_> = formats.chain(recipes).chain(["Q3_K_S", "Q5_K_S"]).collect();
            names.sort_unstable();
            names.dedup();
            format!("no mix of that name; known: {}", names.join(", "))
        })
    }

    pub(super) fn format(self, place: Place) -> WeightFormat {
        match (self, place.role) {
            (Mix::Uniform(format), Role::Output)
                if format.takes_q8() && format != WeightFormat::Q8_0 =>
            {
                WeightFormat::Q6K
            }
            (Mix::Uniform(format), _) => format,
            (Mix::Recipe(recipe), _) => recipe.format(place),
        }
    }
}

/// Names of formats are those formats in all matrices.
impl FromStr for Mix {
    type Err = String;

    fn from_str(name: &str) -> Result<Mix, String> {
        Mix::of_file_type(name, true)
    }
}

/// A format of about the same size whose blocks fit rows of `k` elements, as llama.cpp
/// falls back.
pub(super) fn fitting(format: WeightFormat, k: u32, role: Role) -> WeightFormat {
    if k.is_multiple_of(format.k_multiple()) {
        return format;
    }
    let smaller_blocks = match format {
        WeightFormat::Q2K | WeightFormat::Q3K | WeightFormat::Iq4Xs => WeightFormat::Iq4Nl,
        WeightFormat::Q4K => WeightFormat::Q5_0,
        WeightFormat::Q5K => WeightFormat::Q5_1,
        WeightFormat::Q6K => WeightFormat::Q8_0,
        WeightFormat::F32
        | WeightFormat::F16
        | WeightFormat::BF16
        | WeightFormat::Q4_0
        | WeightFormat::Q4_1
        | WeightFormat::Q5_0
        | WeightFormat::Q5_1
        | WeightFormat::Q8_0
        | WeightFormat::Iq4Nl
        | WeightFormat::Mxfp4 => WeightFormat::F16,
    };
    let smaller_blocks = if role == Role::Output {
        WeightFormat::Q8_0
    } else {
        smaller_blocks
    };
    if k.is_multiple_of(smaller_blocks.k_multiple()) {
        smaller_blocks
    } else {
        WeightFormat::F32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Formats of V and the down projection of 16 layers, four heads to a key-value head.
    fn rows(name: &str, group: u32) -> (String, String) {
        let mix = Mix::of_file_type(name, false).unwrap();
        let list = |role| {
            let format = |layer| {
                let place = Place {
                    role,
                    layer,
                    layers: 16,
                    group,
                };
                let name = mix.format(place).name();
                name.chars().find(char::is_ascii_digit).unwrap()
            };
            (0..16).map(format).collect::<String>()
        };
        (list(Role::Value), list(Role::Down))
    }

    #[test]
    fn recipes_give_more_bits_where_llama_quantize_does() {
        for (name, group, value, down) in [
            ("Q4_K_M", 4, "6644644644644666", "6644644644644666"),
            ("Q5_K_M", 1, "6655655655655666", "6655655655655666"),
            ("Q4_K_S", 4, "5555444444444444", "5544444444444444"),
            ("Q3_K_M", 4, "5544444444444444", "5444444444444444"),
            ("Q3_K_L", 4, "5555555555555555", "5555555555555555"),
            ("Q2_K", 1, "3333333333333333", "3333333333333333"),
            ("Q2_K", 4, "4444444444444444", "3333333333333333"),
            ("Q2_K_S", 1, "2222222222222222", "4422222222222222"),
            ("IQ4_XS", 4, "5555555555555555", "5544444444444444"),
            ("IQ4_NL", 1, "4444444444444444", "5544444444444444"),
            ("Q6_K", 4, "6666666666666666", "6666666666666666"),
        ] {
            let expected = (value.to_owned(), down.to_owned());
            assert_eq!(rows(name, group), expected, "{name} {group}");
        }
    }

    #[test]
    fn pure_names_are_one_format() {
        let mix = Mix::of_file_type("q2_k", true).unwrap();
        assert_eq!(mix, Mix::Uniform(WeightFormat::Q2K));
        assert!(
            Mix::of_file_type("q9", false)
                .unwrap_err()
                .contains("Q4_K_M")
        );
    }
}
