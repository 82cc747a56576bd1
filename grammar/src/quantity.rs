//! Amounts of memory and time, as people write them.

use pest::Parser;
use pest_derive::Parser;

use crate::SyntaxError;

#[derive(Parser)]
#[grammar = "quantity.pest"]
struct QuantityParser;

/// Digits beyond these cannot belong to a value below 2^64.
const DIGITS_MAX: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// A power of 1024 bytes.
    Bytes(u64),
    Milliseconds(u64),
}

/// A decimal number with a unit or without, kept exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantity {
    /// The number times `10^decimals`.
    scaled: u128,
    decimals: u32,
    unit: Option<Unit>,
    length: usize,
}

fn rule_name(rule: &Rule) -> Option<&'static str> {
    match rule {
        Rule::number | Rule::whole => Some("a number"),
        Rule::fraction => Some("digits after the point"),
        Rule::kibi | Rule::mebi | Rule::gibi | Rule::tebi | Rule::byte => {
            Some("a unit (KiB, MiB, GiB, ms, s, min, h)")
        }
        Rule::millisecond | Rule::second | Rule::minute | Rule::hour | Rule::day => {
            Some("a unit (KiB, MiB, GiB, ms, s, min, h)")
        }
        Rule::EOI => Some("the end"),
        Rule::quantity | Rule::unit | Rule::byte_unit | Rule::time_unit | Rule::WHITESPACE => None,
    }
}

impl Quantity {
    /// # Errors
    ///
    /// The text is not a number with an optional unit, or has too many digits.
    pub fn parse(text: &str) -> Result<Quantity, SyntaxError> {
        let all = 0..text.len();
        if text.len() > 64 {
            return Err(SyntaxError::new(all, "a quantity has at most 64 bytes"));
        }
        let mut pairs = QuantityParser::parse(Rule::quantity, text)
            .map_err(|error| SyntaxError::from_pest(error, rule_name))?;
        let mut parts = pairs.next().expect("one quantity was parsed").into_inner();
        let mut digits = parts.next().expect("a quantity has a number").into_inner();
        let whole = digits.next().expect("a number has whole digits").as_str();
        let whole = whole.trim_start_matches('0');
        let fraction = digits
            .next()
            .map_or("", |pair| pair.as_str())
            .trim_end_matches('0');
        if whole.len() > DIGITS_MAX || fraction.len() > DIGITS_MAX - 2 {
            return Err(SyntaxError::new(all, "the number has too many digits"));
        }
        // At most 38 digits, which a u128 holds.
        let scaled = format!("0{whole}{fraction}")
            .parse()
            .expect("38 digits fit 128 bits");
        let unit = parts.next().and_then(|pair| match pair.as_rule() {
            Rule::byte => Some(Unit::Bytes(1)),
            Rule::kibi => Some(Unit::Bytes(1 << 10)),
            Rule::mebi => Some(Unit::Bytes(1 << 20)),
            Rule::gibi => Some(Unit::Bytes(1 << 30)),
            Rule::tebi => Some(Unit::Bytes(1 << 40)),
            Rule::millisecond => Some(Unit::Milliseconds(1)),
            Rule::second => Some(Unit::Milliseconds(1000)),
            Rule::minute => Some(Unit::Milliseconds(60_000)),
            Rule::hour => Some(Unit::Milliseconds(3_600_000)),
            Rule::day => Some(Unit::Milliseconds(86_400_000)),
            Rule::EOI => None,
            Rule::quantity
            | Rule::number
            | Rule::whole
            | Rule::fraction
            | Rule::unit
            | Rule::byte_unit
            | Rule::time_unit
            | Rule::WHITESPACE => unreachable!("{:?} is not a unit", pair.as_rule()),
        });
        Ok(Quantity {
            scaled,
            decimals: u32::try_from(fraction.len()).expect("at most 18 decimals"),
            unit,
            length: text.len(),
        })
    }

    fn times(&self, factor: u64) -> Result<u64, SyntaxError> {
        let value = self
            .scaled
            .checked_mul(u128::from(factor))
            .map(|n| n / 10u128.pow(self.decimals));
        value
            .and_then(|n| u64::try_from(n).ok())
            .ok_or_else(|| SyntaxError::new(0..self.length, "the quantity is not below 2^64"))
    }

    fn whole(&self, what: &str) -> Result<u64, SyntaxError> {
        if self.decimals > 0 {
            return Err(SyntaxError::new(
                0..self.length,
                format!("expected a whole number of {what}"),
            ));
        }
        self.times(1)
    }

    /// An amount of memory in bytes, a fraction of a byte dropped. A number without a unit is
    /// bytes.
    ///
    /// # Errors
    ///
    /// The unit is one of time, or the amount is 2^64 or more.
    pub fn bytes(&self) -> Result<u64, SyntaxError> {
        match self.unit {
            Some(Unit::Bytes(factor)) => self.times(factor),
            None => self.whole("bytes"),
            Some(Unit::Milliseconds(_)) => Err(SyntaxError::new(
                0..self.length,
                "expected an amount of memory, not of time",
            )),
        }
    }

    /// A time in milliseconds, a fraction of one dropped. A number without a unit is milliseconds.
    ///
    /// # Errors
    ///
    /// The unit is one of memory, or the time is 2^64 milliseconds or more.
    pub fn milliseconds(&self) -> Result<u64, SyntaxError> {
        match self.unit {
            Some(Unit::Milliseconds(factor)) => self.times(factor),
            None => self.whole("milliseconds"),
            Some(Unit::Bytes(_)) => Err(SyntaxError::new(
                0..self.length,
                "expected a time, not an amount of memory",
            )),
        }
    }
}

/// Reads an amount of memory: `1200MiB`, `1.5GiB`, `4096`.
///
/// # Errors
///
/// As [`Quantity::parse`] and [`Quantity::bytes`].
pub fn parse_bytes(text: &str) -> Result<u64, SyntaxError> {
    Quantity::parse(text)?.bytes()
}

/// Reads a time in milliseconds: `60min`, `2s`, `250`.
///
/// # Errors
///
/// As [`Quantity::parse`] and [`Quantity::milliseconds`].
pub fn parse_milliseconds(text: &str) -> Result<u64, SyntaxError> {
    Quantity::parse(text)?.milliseconds()
}
