//! From splitting rules to transition tables over character classes.
//!
//! All code points that no rule can tell apart form a class, so that an automaton has a
//! few dozen columns instead of one per byte of UTF-8. Regex engines know bytes only:
//! each class lends one byte to `regex-automata`, which builds the automaton. White space
//! classes lend bytes that are no ASCII word bytes and all others lend word bytes, so that
//! "not followed by `\S`" is the ASCII half boundary `\b{end-half}`, which it supports.

use std::collections::{BTreeMap, HashMap};

use omex_runtime::tokenizer::table::{BLOCK, BLOCKS, transition};
use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::util::primitives::StateID;
use regex_automata::util::start;
use regex_automata::{Anchored, MatchKind};
use regex_syntax::hir::{
    Class, ClassBytes, ClassBytesRange, ClassUnicode, ClassUnicodeRange, Hir, HirKind, Look,
    Repetition,
};

/// One stage's rules, as [`super::pre`] writes them.
pub(super) struct Rule<'a> {
    pub(super) pieces: &'a str,
    /// Text that is passed over, even where `pieces` matches.
    pub(super) skip: Option<&'a str>,
    /// One of [`cut`](omex_runtime::tokenizer::table::cut).
    pub(super) cut: u32,
}

/// The compiled pre-tokenizer, as the table's sections hold it.
pub(super) struct Automata {
    pub(super) classes: u32,
    pub(super) blocks: Vec<u16>,
    pub(super) leaves: Vec<u8>,
    pub(super) stages: Vec<Stage>,
}

/// `table[state * (classes + 1) + class]`; the last class is the end of text.
pub(super) struct Stage {
    pub(super) start: u32,
    pub(super) cut: u32,
    pub(super) states: u32,
    pub(super) table: Vec<u16>,
}

/// Compiles rules; the error says what regex-automata says, or names a limit.
pub(super) fn compile(rules: &[Rule<'_>]) -> Result<Automata, String> {
    let mut parsed = Vec::new();
    for rule in rules {
        // Of two patterns that match, the first one wins.
        let mut patterns = Vec::new();
        if let Some(skip) = rule.skip {
            patterns.push(parse(skip)?);
        }
        patterns.push(parse(rule.pieces)?);
        parsed.push(patterns);
    }
    let classes = Classes::new(parsed.iter().flatten())?;
    let (blocks, leaves) = classes.blocks();
    let stages = parsed
        .iter()
        .zip(rules)
        .map(|(patterns, rule)| classes.stage(patterns, rule.cut))
        .collect::<Result<_, _>>()?;
    Ok(Automata {
        classes: classes.letters.len() as u32,
        blocks,
        leaves,
        stages,
    })
}

fn parse(pattern: &str) -> Result<Hir, String> {
    regex_syntax::parse(&pattern.replace(r"(?!\S)", r"\b{end-half}")).map_err(|e| e.to_string())
}

/// The partition of all code points, and the byte that each class lends.
struct Classes {
    /// First code point of each interval, its last one, and its class.
    intervals: Vec<(u32, u32, u8)>,
    letters: Vec<u8>,
}

impl Classes {
    fn new<'a>(patterns: impl Iterator<Item = &'a Hir>) -> Result<Self, String> {
        let space = parse(r"\s")?;
        let mut sets = Vec::new();
        collect(&space, &mut sets);
        for pattern in patterns {
            collect(pattern, &mut sets);
        }
        let mut borders = vec![0, 0xd800, 0xe000, 0x110000];
        for set in &sets {
            for range in set.ranges() {
                borders.extend([range.start() as u32, range.end() as u32 + 1]);
            }
        }
        borders.sort_unstable();
        borders.dedup();
        let contains = |set: &ClassUnicode, point: u32| {
            let ranges = set.ranges();
            let after = ranges.partition_point(|r| r.start() as u32 <= point);
            after > 0 && ranges[after - 1].end() as u32 >= point
        };
        let mut known: BTreeMap<Vec<bool>, u8> = BTreeMap::new();
        let mut letters = Vec::new();
        let mut intervals = Vec::new();
        let mut words = (b'0'..=b'9')
            .chain(b'A'..=b'Z')
            .chain(b'a'..=b'z')
            .chain([b'_']);
        let mut others = 0x80..=0xffu8;
        for pair in borders.windows(2) {
            let members: Vec<bool> = sets.iter().map(|set| contains(set, pair[0])).collect();
            let is_space = members[0];
            let class = match known.get(&members) {
                Some(&class) => class,
                None => {
                    let letter = if is_space {
                        others.next()
                    } else {
                        words.next()
                    };
                    let class = letters.len() as u8;
                    letters.push(letter.ok_or("too many character classes")?);
                    known.insert(members, class);
                    class
                }
            };
            intervals.push((pair[0], pair[1] - 1, class));
        }
        Ok(Self { intervals, letters })
    }

    /// Two-stage table: equal blocks of code points are stored once.
    fn blocks(&self) -> (Vec<u16>, Vec<u8>) {
        let mut points = vec![0u8; BLOCK * BLOCKS];
        for &(first, last, class) in &self.intervals {
            points[first as usize..=last as usize].fill(class);
        }
        let mut known: HashMap<&[u8], u16> = HashMap::new();
        let mut leaves = Vec::new();
        let blocks = points
            .chunks(BLOCK)
            .map(|block| {
                *known.entry(block).or_insert_with(|| {
                    leaves.extend_from_slice(block);
                    (leaves.len() / BLOCK - 1) as u16
                })
            })
            .collect();
        (blocks, leaves)
    }

    /// The bytes of the classes inside a set of code points.
    fn bytes(&self, set: &ClassUnicode) -> ClassBytes {
        let mut ranges = set.ranges().iter().peekable();
        let mut bytes = ClassBytes::empty();
        for &(first, _, class) in &self.intervals {
            while ranges.next_if(|r| (r.end() as u32) < first).is_some() {}
            if ranges.peek().is_some_and(|r| (r.start() as u32) <= first) {
                let letter = self.letters[usize::from(class)];
                bytes.push(ClassBytesRange::new(letter, letter));
            }
        }
        bytes
    }

    /// The pattern over the classes' bytes instead of over code points.
    fn translate(&self, hir: &Hir) -> Hir {
        match hir.kind() {
            HirKind::Empty => Hir::empty(),
            HirKind::Literal(_) | HirKind::Class(_) => {
                let mut sets = Vec::new();
                collect(hir, &mut sets);
                let classes = sets
                    .iter()
                    .map(|set| Hir::class(Class::Bytes(self.bytes(set))));
                Hir::concat(classes.collect())
            }
            HirKind::Look(Look::WordEndHalfUnicode) => Hir::look(Look::WordEndHalfAscii),
            HirKind::Look(look) => Hir::look(*look),
            HirKind::Repetition(repetition) => Hir::repetition(Repetition {
                sub: Box::new(self.translate(&repetition.sub)),
                ..repetition.clone()
            }),
            HirKind::Capture(capture) => self.translate(&capture.sub),
            HirKind::Concat(parts) => {
                Hir::concat(parts.iter().map(|part| self.translate(part)).collect())
            }
            HirKind::Alternation(parts) => {
                Hir::alternation(parts.iter().map(|part| self.translate(part)).collect())
            }
        }
    }

    fn stage(&self, patterns: &[Hir], cut: u32) -> Result<Stage, String> {
        let patterns: Vec<Hir> = patterns.iter().map(|hir| self.translate(hir)).collect();
        let pieces = patterns.len() - 1;
        let nfa = thompson::NFA::compiler()
            .configure(thompson::Config::new().utf8(false))
            .build_many_from_hir(&patterns)
            .map_err(|e| e.to_string())?;
        let config = dense::Config::new()
            .match_kind(MatchKind::LeftmostFirst)
            .start_kind(StartKind::Anchored)
            .accelerate(false)
            .minimize(true);
        let dfa = dense::Builder::new()
            .configure(config)
            .build_from_nfa(&nfa)
            .map_err(|e| e.to_string())?;
        let start = dfa
            .start_state(&start::Config::new().anchored(Anchored::Yes))
            .map_err(|e| e.to_string())?;

        // State 0 is the dead one; the others are numbered as they are reached.
        let mut numbers: HashMap<StateID, u16> = HashMap::from([(start, 1)]);
        let mut states = vec![start];
        let mut table = vec![0u16; self.letters.len() + 1];
        let mut at = 0;
        while at < states.len() {
            let state = states[at];
            at += 1;
            for &letter in &self.letters {
                let target = dfa.next_state(state, letter);
                let number = if dfa.is_dead_state(target) {
                    0
                } else {
                    let next = states.len() as u16 + 1;
                    *numbers.entry(target).or_insert_with(|| {
                        states.push(target);
                        next
                    })
                };
                if number > transition::STATE {
                    return Err("the automaton has too many states".to_owned());
                }
                table.push(number | ended(&dfa, target, pieces));
            }
            table.push(ended(&dfa, dfa.next_eoi_state(state), pieces));
        }
        Ok(Stage {
            start: 1,
            cut,
            states: states.len() as u32 + 1,
            table,
        })
    }
}

/// What entering `state` says about the text before the class that led there.
fn ended(dfa: &dense::DFA<Vec<u32>>, state: StateID, pieces: usize) -> u16 {
    if !dfa.is_match_state(state) {
        0
    } else if dfa.match_pattern(state, 0).as_usize() == pieces {
        transition::PIECE
    } else {
        transition::SKIP
    }
}

/// Every set of code points that a pattern can tell from the others, in order.
fn collect(hir: &Hir, sets: &mut Vec<ClassUnicode>) {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => {}
        HirKind::Literal(literal) => {
            let text = std::str::from_utf8(&literal.0).expect("patterns are Unicode");
            sets.extend(
                text.chars()
                    .map(|c| ClassUnicode::new([ClassUnicodeRange::new(c, c)])),
            );
        }
        HirKind::Class(Class::Unicode(set)) => sets.push(set.clone()),
        HirKind::Class(Class::Bytes(set)) => {
            sets.push(set.to_unicode_class().expect("patterns are Unicode"));
        }
        HirKind::Repetition(repetition) => collect(&repetition.sub, sets),
        HirKind::Capture(capture) => collect(&capture.sub, sets),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            for part in parts {
                collect(part, sets);
            }
        }
    }
}
