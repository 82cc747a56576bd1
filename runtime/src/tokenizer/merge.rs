//! Merging: the pair of neighbours with the lowest rank becomes one, leftmost first, until
//! no pair has a rank.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use super::scan::character;
use super::table::{self, Model, NONE, option};
use super::{Field, Tokenizer};

/// Up to this many symbols, looking at all of them beats a heap.
const SHORT_MAX: usize = 32;

/// A run of a piece's bytes that is (on its way to) one token.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    /// Token of these bytes, or [`NONE`].
    id: u32,
    /// First byte, within the piece; the symbol ends where the next one starts.
    start: u32,
    previous: u32,
    next: u32,
}

/// Working memory of the encoder, reused from piece to piece. It grows with the longest
/// piece that cannot be split (about 40 bytes per byte), not with the text.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    symbols: Vec<Symbol>,
    /// Candidates by rank, then place; a candidate that no longer holds is passed over.
    heap: BinaryHeap<Reverse<(u32, u32)>>,
    /// The rank of each symbol with its next one, for short pieces.
    ranks: Vec<u32>,
    /// The piece's bytes as the vocabulary spells them, for characters.
    piece: Vec<u8>,
}

/// What two neighbouring symbols become: rank and token.
type Merge = Option<(u32, u32)>;

impl Scratch {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn clear(&mut self) {
        self.symbols.clear();
        self.heap.clear();
    }

    fn push(&mut self, id: u32, start: usize) {
        let at = self.symbols.len() as u32;
        self.symbols.push(Symbol {
            id,
            start: start as u32,
            previous: at.wrapping_sub(1),
            next: at + 1,
        });
    }

    /// Merges the symbols of a piece of `len` bytes. `pair` gives what two neighbours
    /// become: of two symbols, with the range of bytes that both span.
    fn merge(&mut self, len: usize, pair: impl Fn(u32, u32, Range<usize>) -> Merge) {
        if self.symbols.len() <= SHORT_MAX {
            self.merge_short(len, pair);
        } else {
            self.merge_long(len, pair);
        }
    }

    /// Removes merged symbols from the list, which stays dense.
    fn merge_short(&mut self, len: usize, pair: impl Fn(u32, u32, Range<usize>) -> Merge) {
        let symbols = &mut self.symbols;
        let rank = |symbols: &[Symbol], at: usize| {
            let [left, right] = symbols.get(at..at + 2)?.try_into().ok()?;
            let end = symbols
                .get(at + 2)
                .map_or(len, |s: &Symbol| s.start as usize);
            let (left, right): (Symbol, Symbol) = (left, right);
            pair(left.id, right.id, left.start as usize..end)
        };
        self.ranks.clear();
        self.ranks
            .extend((0..symbols.len()).map(|at| rank(symbols, at).map_or(NONE, |(rank, _)| rank)));
        while let Some((at, &lowest)) = self.ranks.iter().enumerate().min_by_key(|&(_, r)| r) {
            if lowest == NONE {
                break;
            }
            let (_, id) = rank(symbols, at).expect("a pair with a rank has a merge");
            symbols[at].id = id;
            symbols.remove(at + 1);
            self.ranks.remove(at + 1);
            for changed in at.saturating_sub(1)..=at {
                self.ranks[changed] = rank(symbols, changed).map_or(NONE, |(rank, _)| rank);
            }
        }
    }

    /// Links symbols by index and finds the lowest rank with a heap: O(n log n).
    fn merge_long(&mut self, len: usize, pair: impl Fn(u32, u32, Range<usize>) -> Merge) {
        let symbols = &mut self.symbols;
        let count = symbols.len() as u32;
        // A symbol that was merged into its left neighbour is its own next.
        let at_pair = |symbols: &[Symbol], at: u32| -> Merge {
            let left = symbols[at as usize];
            if left.next == at || left.next >= count {
                return None;
            }
            let right = symbols[left.next as usize];
            let end = symbols
                .get(right.next as usize)
                .map_or(len, |s| s.start as usize);
            pair(left.id, right.id, left.start as usize..end)
        };
        for at in 0..count {
            if let Some((rank, _)) = at_pair(symbols, at) {
                self.heap.push(Reverse((rank, at)));
            }
        }
        while let Some(Reverse((rank, at))) = self.heap.pop() {
            let Some((_, id)) = at_pair(symbols, at).filter(|&(now, _)| now == rank) else {
                continue;
            };
            let right = symbols[at as usize].next;
            let next = symbols[right as usize].next;
            symbols[right as usize].next = right;
            symbols[at as usize].id = id;
            symbols[at as usize].next = next;
            if next < count {
                symbols[next as usize].previous = at;
            }
            for changed in [symbols[at as usize].previous, at] {
                if changed < count
                    && let Some((rank, _)) = at_pair(symbols, changed)
                {
                    self.heap.push(Reverse((rank, changed)));
                }
            }
        }
        let mut at = 0;
        symbols.retain(|symbol| {
            at += 1;
            symbol.next != at - 1
        });
    }
}

impl Tokenizer<'_> {
    /// Encodes one piece with the merge list; returns the bytes without a token. A byte
    /// without a token is left out before merging, so its neighbours can merge.
    pub(super) fn merge_bytes(
        &self,
        text: &[u8],
        piece: Range<usize>,
        scratch: &mut Scratch,
        sink: &mut dyn FnMut(u32, Range<usize>),
    ) -> usize {
        let bytes = &text[piece.clone()];
        if self.option(option::IGNORE_MERGES)
            && let Some(id) = self.find_text(bytes)
        {
            sink(id, piece);
            return 0;
        }
        scratch.clear();
        let mut lost = 0;
        for (start, &byte) in bytes.iter().enumerate() {
            match self.tables.byte_ids.at(usize::from(byte)) {
                NONE => lost += 1,
                id => scratch.push(id, start),
            }
        }
        scratch.merge(bytes.len(), |left, right, _| self.find_merge(left, right));
        let mut rest = scratch.symbols.iter().peekable();
        while let Some(symbol) = rest.next() {
            let end = rest.peek().map_or(bytes.len(), |s| s.start as usize);
            sink(
                symbol.id,
                piece.start + symbol.start as usize..piece.start + end,
            );
        }
        lost
    }

    fn find_merge(&self, left: u32, right: u32) -> Merge {
        let (index, merges) = (self.tables.merge_index, self.tables.merges);
        let mask = index.len() - 1;
        let mut slot = table::hash_pair(left, right) as usize & mask;
        loop {
            let rank = index.at(slot);
            if rank == NONE {
                return None;
            }
            let entry = rank as usize * 3;
            if merges.at(entry) == left && merges.at(entry + 1) == right {
                return Some((rank, merges.at(entry + 2)));
            }
            slot = (slot + 1) & mask;
        }
    }

    /// Encodes the characters of a text; returns the bytes without a token.
    ///
    /// U+2581 and the space are one character to the vocabulary; tables spell it as a
    /// space. Between two characters that meet in no token the text is cut, which
    /// changes no merge and keeps the pieces short.
    pub(super) fn merge_characters(
        &self,
        text: &[u8],
        range: Range<usize>,
        prefix: bool,
        scratch: &mut Scratch,
        sink: &mut dyn FnMut(u32, Range<usize>),
    ) -> usize {
        let text = &text[..range.end];
        let mut lost = 0;
        let mut start = range.start;
        let mut prefix = prefix;
        while start < text.len() {
            scratch.clear();
            scratch.piece.clear();
            if prefix {
                scratch.push(self.find_text(b" ").unwrap_or(NONE), 0);
                scratch.piece.push(b' ');
            }
            let mut at = start;
            while at < text.len() {
                let (_, len) = character(text, at);
                let spelled = match self.spelled(text, at) {
                    (b' ', _) => b" ",
                    _ => &text[at..at + len],
                };
                if let Some(&before) = scratch.piece.last()
                    && !self.meet(before, spelled[0])
                {
                    break;
                }
                let id = self.find_text(spelled).unwrap_or(NONE);
                scratch.push(id, scratch.piece.len());
                scratch.piece.extend_from_slice(spelled);
                at += len;
            }
            lost += self.merge_piece(text, start..at, prefix, scratch, sink);
            prefix = false;
            start = at;
        }
        lost
    }

    fn meet(&self, left: u8, right: u8) -> bool {
        let bit = usize::from(left) * 256 + usize::from(right);
        self.tables.joints[bit / 8] & (1 << (bit % 8)) != 0
    }

    /// Merges the symbols in `scratch` and gives the tokens; `source` is where the piece
    /// is in `text`, in which a space may have three bytes and a prefix has none.
    fn merge_piece(
        &self,
        text: &[u8],
        source: Range<usize>,
        prefix: bool,
        scratch: &mut Scratch,
        sink: &mut dyn FnMut(u32, Range<usize>),
    ) -> usize {
        let piece = std::mem::take(&mut scratch.piece);
        if self.model() == Model::Scores {
            let longest = self.tables.field(Field::TokenBytesMax) as usize;
            scratch.merge(piece.len(), |_, _, span| {
                let bytes = (span.len() <= longest).then(|| &piece[span])?;
                let id = self.find_text(bytes)?;
                let rank = self.tables.ranks.at(id as usize);
                (rank != NONE).then_some((rank, id))
            });
        } else {
            scratch.merge(piece.len(), |left, right, _| self.find_merge(left, right));
        }
        let mut lost = 0;
        let mut unknown_before = false;
        let mut from = source.start;
        let mut rest = scratch.symbols.iter().peekable();
        while let Some(symbol) = rest.next() {
            let start = symbol.start as usize;
            let end = rest.peek().map_or(piece.len(), |s| s.start as usize);
            if symbol.id != NONE {
                let mut to = from;
                for &byte in &piece[start + usize::from(prefix && start == 0)..end] {
                    to += if byte == b' ' && text[to] != b' ' {
                        3
                    } else {
                        1
                    };
                }
                sink(symbol.id, from..to);
                from = to;
                unknown_before = false;
                continue;
            }
            let bytes = &piece[start..end];
            let byte_ids = self.tables.byte_ids;
            let all = bytes
                .iter()
                .all(|&byte| byte_ids.at(usize::from(byte)) != NONE);
            if prefix && start == 0 {
                // The prefix itself has no token: it stands for no text.
            } else if all {
                for &byte in bytes {
                    // A space that is no token is spelled as its own byte.
                    let len = if byte == b' ' && text[from] != b' ' {
                        3
                    } else {
                        1
                    };
                    sink(byte_ids.at(usize::from(byte)), from..from + len);
                    from += len;
                }
            } else {
                let len = if bytes == b" " && text[from] != b' ' {
                    3
                } else {
                    bytes.len()
                };
                lost += len;
                // Neighbouring unknown characters are one unknown token.
                if let Some(id) = self.unknown().filter(|_| !unknown_before) {
                    sink(id, from..from + len);
                }
                from += len;
            }
            unknown_before = !all;
        }
        scratch.piece = piece;
        lost
    }
}
