//! Ends texts where one of the task's stop texts appears.

use crate::error::RunError;

/// Holds back text that may be the start of a stop text.
#[derive(Debug, Default)]
pub(super) struct StopFilter {
    held: Vec<u8>,
}

pub(super) type Emit<'a> = dyn FnMut(&[u8]) -> Result<(), RunError> + 'a;

impl StopFilter {
    pub(super) fn with_capacity(bytes: usize) -> StopFilter {
        StopFilter {
            held: Vec::with_capacity(bytes),
        }
    }

    pub(super) fn clear(&mut self) {
        self.held.clear();
    }

    /// Takes the next text and gives out what cannot be part of a stop text
    /// any more. Returns true when one appeared; it is not given out.
    pub(super) fn push(
        &mut self,
        bytes: &[u8],
        stop: &[String],
        emit: &mut Emit<'_>,
    ) -> Result<bool, RunError> {
        self.held.extend_from_slice(bytes);
        let found = |at: &usize| {
            stop.iter()
                .any(|s| self.held[*at..].starts_with(s.as_bytes()))
        };
        if let Some(at) = (0..self.held.len()).find(found) {
            emit(&self.held[..at])?;
            self.held.clear();
            return Ok(true);
        }
        let may_start = |at: &usize| {
            let rest = &self.held[*at..];
            stop.iter().any(|s| s.as_bytes().starts_with(rest))
        };
        let keep = (0..self.held.len()).find(may_start);
        let keep = keep.unwrap_or(self.held.len());
        if keep > 0 {
            emit(&self.held[..keep])?;
            self.held.drain(..keep);
        }
        Ok(false)
    }

    pub(super) fn finish(&mut self, emit: &mut Emit<'_>) -> Result<(), RunError> {
        if !self.held.is_empty() {
            emit(&self.held)?;
            self.held.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(stop: &[&str], parts: &[&str]) -> (String, bool) {
        let stop: Vec<String> = stop.iter().map(|s| s.to_string()).collect();
        let mut filter = StopFilter::default();
        let mut text = Vec::new();
        let mut emit = |bytes: &[u8]| {
            text.extend_from_slice(bytes);
            Ok(())
        };
        for part in parts {
            if filter.push(part.as_bytes(), &stop, &mut emit).unwrap() {
                return (String::from_utf8(text).unwrap(), true);
            }
        }
        filter.finish(&mut emit).unwrap();
        (String::from_utf8(text).unwrap(), false)
    }

    #[test]
    fn stop_texts_end_the_text_wherever_tokens_end() {
        let ended = |s: &str| (s.to_owned(), true);
        let whole = |s: &str| (s.to_owned(), false);
        assert_eq!(filter(&["END"], &["a E", "N", "D b"]), ended("a "));
        assert_eq!(filter(&["END"], &["a E", "N", "E"]), whole("a ENE"));
        assert_eq!(filter(&["END"], &["EEN", "END"]), ended("EEN"));
        assert_eq!(filter(&["aab", "b"], &["a", "a", "c", "b"]), ended("aac"));
        assert_eq!(filter(&["xyz"], &["x", "y"]), whole("xy"));
        assert_eq!(filter(&[], &["x", "y"]), whole("xy"));
        assert_eq!(filter(&["bc", "abcd"], &["abc"]), ended("a"));
    }
}
