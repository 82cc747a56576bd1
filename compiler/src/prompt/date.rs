//! The day of a prompt.

use super::value::{Result, failure};

/// A day, for templates that ask which one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to the month's length.
    pub day: u8,
}

impl std::fmt::Display for Date {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

impl Date {
    /// Parses `YYYY-MM-DD`; `None` for anything else and for days that do not exist.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = |range: std::ops::Range<usize>| {
            let part = text.get(range)?;
            part.bytes()
                .all(|b| b.is_ascii_digit())
                .then(|| part.parse().ok())
                .flatten()
        };
        let separated = text.len() == 10
            && text.is_char_boundary(4)
            && [4, 7].iter().all(|&i| text.as_bytes()[i] == b'-');
        let (year, month, day): (u16, u16, u16) = (digits(0..4)?, digits(5..7)?, digits(8..10)?);
        let date = Self {
            year,
            month: month as u8,
            day: day as u8,
        };
        (separated && (1..=12).contains(&month) && (1..=date.month_length()).contains(&day))
            .then_some(date)
    }

    fn is_leap(self) -> bool {
        self.year.is_multiple_of(4)
            && (!self.year.is_multiple_of(100) || self.year.is_multiple_of(400))
    }

    fn month_length(self) -> u16 {
        match self.month {
            2 => 28 + u16::from(self.is_leap()),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        }
    }

    fn day_of_year(self) -> u16 {
        let before: u16 = (1..self.month)
            .map(|month| Self { month, ..self }.month_length())
            .sum();
        before + u16::from(self.day)
    }

    /// 0 is Sunday.
    fn weekday(self) -> usize {
        let years = u32::from(self.year).max(1) - 1;
        let days =
            years * 365 + years / 4 - years / 100 + years / 400 + u32::from(self.day_of_year());
        days as usize % 7
    }

    /// C's `strftime` in the C locale, at midnight.
    pub(super) fn format(self, format: &str) -> Result<String> {
        const DAYS: [&str; 7] = [
            "Sunday",
            "Monday",
            "Tuesday",
            "Wednesday",
            "Thursday",
            "Friday",
            "Saturday",
        ];
        const MONTHS: [&str; 12] = [
            "January",
            "February",
            "March",
            "April",
            "May",
            "June",
            "July",
            "August",
            "September",
            "October",
            "November",
            "December",
        ];
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let (year, month, day) = (self.year, self.month, self.day);
            let (weekday, month_name) = (DAYS[self.weekday()], MONTHS[usize::from(month) - 1]);
            let mut directive = chars.next();
            // `%-d` and the like: without leading zeros.
            let bare = directive == Some('-');
            if bare {
                directive = chars.next();
            }
            let number = |value: u16, width: usize| {
                if bare {
                    value.to_string()
                } else {
                    format!("{value:0width$}")
                }
            };
            out.push_str(&match directive {
                Some('Y') => number(year, 4),
                Some('y') => number(year % 100, 2),
                Some('m') => number(month.into(), 2),
                Some('d') => number(day.into(), 2),
                Some('e') => format!("{day:2}"),
                Some('j') => number(self.day_of_year(), 3),
                Some('B') => month_name.to_owned(),
                Some('b' | 'h') => month_name[..3].to_owned(),
                Some('A') => weekday.to_owned(),
                Some('a') => weekday[..3].to_owned(),
                Some('w') => self.weekday().to_string(),
                Some('F') => format!("{year:04}-{month:02}-{day:02}"),
                Some('D' | 'x') => format!("{month:02}/{day:02}/{:02}", year % 100),
                Some('H' | 'M' | 'S') => number(0, 2),
                Some('I') => number(12, 2),
                Some('p') => "AM".to_owned(),
                Some('T' | 'X') => "00:00:00".to_owned(),
                Some('R') => "00:00".to_owned(),
                Some('%') => "%".to_owned(),
                other => {
                    let directive = other.map(String::from).unwrap_or_default();
                    return Err(failure(format!("strftime_now does not know %{directive}")));
                }
            });
        }
        Ok(out)
    }
}
