//! Values of attributes: one conversion to text and one back for every type
//! that graphs and plans are written with.

use std::collections::BTreeMap;

use omex_grammar::ir::Literal;
use omex_kernels::WeightFormat;
use omex_kernels::spec::{
    Activation, F32, GateFunction, KvFormat, NormKind, Rope, RopePairing, TableLayout,
};

/// Enums that are written as one word.
pub(crate) trait Word: Copy + Sized + 'static {
    const ALL: &'static [Self];
    fn word(self) -> String;
    fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|w| w.word() == word)
    }
}

impl Word for WeightFormat {
    const ALL: &'static [Self] = &WeightFormat::ALL;
    fn word(self) -> String {
        self.name().to_lowercase()
    }
}

impl Word for TableLayout {
    const ALL: &'static [Self] = &[TableLayout::Rows, TableLayout::Panels];
    fn word(self) -> String {
        match self {
            TableLayout::Rows => "rows",
            TableLayout::Panels => "panels",
        }
        .to_owned()
    }
}

impl Word for Activation {
    const ALL: &'static [Self] = &[Activation::F32, Activation::Q8];
    fn word(self) -> String {
        match self {
            Activation::F32 => "f32",
            Activation::Q8 => "q8",
        }
        .to_owned()
    }
}

impl Word for RopePairing {
    const ALL: &'static [Self] = &[RopePairing::Adjacent, RopePairing::Halves];
    fn word(self) -> String {
        match self {
            RopePairing::Adjacent => "adjacent",
            RopePairing::Halves => "halves",
        }
        .to_owned()
    }
}

impl Word for GateFunction {
    const ALL: &'static [Self] = &[GateFunction::Silu, GateFunction::GeluTanh];
    fn word(self) -> String {
        match self {
            GateFunction::Silu => "silu",
            GateFunction::GeluTanh => "gelu_tanh",
        }
        .to_owned()
    }
}

impl Word for NormKind {
    const ALL: &'static [Self] = &[NormKind::Rms, NormKind::Layer];
    fn word(self) -> String {
        match self {
            NormKind::Rms => "rms",
            NormKind::Layer => "layer",
        }
        .to_owned()
    }
}

impl Word for KvFormat {
    const ALL: &'static [Self] = &[KvFormat::F16, KvFormat::Q8];
    fn word(self) -> String {
        match self {
            KvFormat::F16 => "f16",
            KvFormat::Q8 => "q8",
        }
        .to_owned()
    }
}

impl Word for bool {
    const ALL: &'static [Self] = &[false, true];
    fn word(self) -> String {
        self.to_string()
    }
}

/// Values of attributes.
pub(crate) trait Attribute: Sized {
    fn literal(&self) -> Literal;
    fn from_literal(literal: &Literal) -> Option<Self>;
}

impl<T: Word> Attribute for T {
    fn literal(&self) -> Literal {
        Literal::Word(self.word())
    }
    fn from_literal(literal: &Literal) -> Option<T> {
        match literal {
            Literal::Word(word) => T::from_word(word),
            Literal::Number(_) | Literal::Text(_) | Literal::Tuple(_) | Literal::List(_) => None,
        }
    }
}

impl Attribute for u32 {
    fn literal(&self) -> Literal {
        Literal::number(self)
    }
    fn from_literal(literal: &Literal) -> Option<u32> {
        number(literal)
    }
}

impl Attribute for u64 {
    fn literal(&self) -> Literal {
        Literal::number(self)
    }
    fn from_literal(literal: &Literal) -> Option<u64> {
        number(literal)
    }
}

impl Attribute for F32 {
    fn literal(&self) -> Literal {
        // The shortest decimal that reads back as the same bits.
        Literal::Number(format!("{:?}", self.get()))
    }
    fn from_literal(literal: &Literal) -> Option<F32> {
        number(literal).map(F32::new)
    }
}

pub(crate) fn number<T: std::str::FromStr>(literal: &Literal) -> Option<T> {
    match literal {
        Literal::Number(text) => text.parse().ok(),
        Literal::Word(_) | Literal::Text(_) | Literal::Tuple(_) | Literal::List(_) => None,
    }
}

impl Attribute for String {
    fn literal(&self) -> Literal {
        Literal::text(self)
    }
    fn from_literal(literal: &Literal) -> Option<String> {
        match literal {
            Literal::Text(text) => Some(text.clone()),
            Literal::Word(_) | Literal::Number(_) | Literal::Tuple(_) | Literal::List(_) => None,
        }
    }
}

impl<T: Attribute> Attribute for Vec<T> {
    fn literal(&self) -> Literal {
        Literal::List(self.iter().map(Attribute::literal).collect())
    }
    fn from_literal(literal: &Literal) -> Option<Vec<T>> {
        match literal {
            Literal::List(items) => items.iter().map(T::from_literal).collect(),
            Literal::Word(_) | Literal::Number(_) | Literal::Tuple(_) | Literal::Text(_) => None,
        }
    }
}

/// `none`, or the value.
impl<T: Attribute> Attribute for Option<T> {
    fn literal(&self) -> Literal {
        match self {
            None => Literal::word("none"),
            Some(value) => value.literal(),
        }
    }
    fn from_literal(literal: &Literal) -> Option<Option<T>> {
        match literal {
            Literal::Word(word) if word == "none" => Some(None),
            value => T::from_literal(value).map(Some),
        }
    }
}

/// `(pairs, pairing)`
impl Attribute for Rope {
    fn literal(&self) -> Literal {
        Literal::Tuple(vec![self.pairs.literal(), self.pairing.literal()])
    }
    fn from_literal(literal: &Literal) -> Option<Rope> {
        match tuple(literal)? {
            [pairs, pairing] => Some(Rope {
                pairs: u32::from_literal(pairs)?,
                pairing: RopePairing::from_literal(pairing)?,
            }),
            _ => None,
        }
    }
}

pub(crate) fn tuple(literal: &Literal) -> Option<&[Literal]> {
    match literal {
        Literal::Tuple(items) => Some(items),
        Literal::Word(_) | Literal::Number(_) | Literal::List(_) | Literal::Text(_) => None,
    }
}

/// The attributes of a statement or record, taken one by one.
pub(crate) struct Attributes<'a>(BTreeMap<&'a str, &'a Literal>);

impl<'a> Attributes<'a> {
    pub(crate) fn new(attributes: &'a [(String, Literal)]) -> Attributes<'a> {
        Attributes(attributes.iter().map(|(n, l)| (n.as_str(), l)).collect())
    }

    pub(crate) fn take<T: Attribute>(&mut self, name: &str) -> Result<T, String> {
        let literal = self
            .0
            .remove(name)
            .ok_or_else(|| format!("attribute `{name}` is missing"))?;
        T::from_literal(literal).ok_or_else(|| format!("attribute `{name}` cannot be {literal}"))
    }

    pub(crate) fn finish(self) -> Result<(), String> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(format!("attribute `{name}` is not known")),
        }
    }
}

/// Attributes as text, nothing for none.
pub(crate) struct Braces<'a>(pub(crate) &'a [(&'static str, Literal)]);

impl std::fmt::Display for Braces<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, (name, literal)) in self.0.iter().enumerate() {
            let separator = if i == 0 { "{" } else { ", " };
            write!(f, "{separator}{name}={literal}")?;
        }
        f.write_str(if self.0.is_empty() { "" } else { "}" })
    }
}
