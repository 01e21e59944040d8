//! `strftime_now`: the date and time some templates write into their system prompt. It is UTC: the machine's time
//! zone is not read.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
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

/// The time now in `format`, in the C locale.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    strftime(format, now)
}

/// A moment's calendar fields.
struct Moment {
    year: u64,
    month: usize,
    day: usize,
    weekday: usize,
    day_of_year: usize,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Moment {
    fn new(seconds: u64) -> Self {
        let (mut days, second) = (seconds / 86_400, seconds % 86_400);
        // The first of January 1970 was a Thursday.
        let weekday = ((days + 3) % 7) as usize;
        let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let mut year = 1970 + days / 146_097 * 400;
        days %= 146_097;
        while days >= 365 + u64::from(leap(year)) {
            days -= 365 + u64::from(leap(year));
            year += 1;
        }
        let day_of_year = days as usize + 1;
        let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let mut month = 0;
        while days >= lengths[month] {
            days -= lengths[month];
            month += 1;
        }
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        Self { year, month: month + 1, day: days as usize + 1, weekday, day_of_year, hour, minute, second }
    }
}

fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let now = Moment::new(seconds);
    let hour12 = (now.hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = chars.next();
        let bare = code == Some('-');
        if bare {
            code = chars.next();
        }
        let number = |value: u64, width: usize| if bare { value.to_string() } else { format!("{value:0width$}") };
        out += &match code {
            Some('Y') => now.year.to_string(),
            Some('y') => number(now.year % 100, 2),
            Some('m') => number(now.month as u64, 2),
            Some('d') => number(now.day as u64, 2),
            Some('e') => format!("{:2}", now.day),
            Some('j') => number(now.day_of_year as u64, 3),
            Some('H') => number(now.hour, 2),
            Some('I') => number(hour12, 2),
            Some('M') => number(now.minute, 2),
            Some('S') => number(now.second, 2),
            Some('f') => "000000".into(),
            Some('p') => if now.hour < 12 { "AM" } else { "PM" }.into(),
            Some('A') => DAYS[now.weekday].into(),
            Some('a') => DAYS[now.weekday][..3].into(),
            Some('B') => MONTHS[now.month - 1].into(),
            Some('b' | 'h') => MONTHS[now.month - 1][..3].into(),
            Some('u') => (now.weekday + 1).to_string(),
            Some('w') => ((now.weekday + 1) % 7).to_string(),
            Some('F') => strftime("%Y-%m-%d", seconds)?,
            Some('T' | 'X') => strftime("%H:%M:%S", seconds)?,
            Some('R') => strftime("%H:%M", seconds)?,
            Some('D' | 'x') => strftime("%m/%d/%y", seconds)?,
            Some('c') => strftime("%a %b %e %H:%M:%S %Y", seconds)?,
            Some('s') => seconds.to_string(),
            // Python's `now()` knows no zone and prints none.
            Some('z' | 'Z') => String::new(),
            Some('n') => "\n".into(),
            Some('t') => "\t".into(),
            Some('%') => "%".into(),
            other => {
                let problem = format!("strftime_now does not know %{}", other.map(String::from).unwrap_or_default());
                return Err(Error::new(ErrorKind::InvalidOperation, problem));
            }
        };
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| strftime("%A %d %B %Y %H:%M:%S %j", seconds).unwrap();
        assert_eq!(at(0), "Thursday 01 January 1970 00:00:00 001");
        assert_eq!(at(951_782_400), "Tuesday 29 February 2000 00:00:00 060");
        assert_eq!(at(1_735_689_599), "Tuesday 31 December 2024 23:59:59 366");
        assert_eq!(at(4_107_542_400), "Monday 01 March 2100 00:00:00 060");
        assert_eq!(strftime("%-d %b %y, %-I:%M %p %%", 1_783_987_200).unwrap(), "14 Jul 26, 12:00 AM %");
        assert_eq!(strftime("%c|%F|%D", 0).unwrap(), "Thu Jan  1 00:00:00 1970|1970-01-01|01/01/70");
    }

    #[test]
    fn an_unknown_code_is_an_error() {
        assert!(strftime("%Q", 0).is_err());
        assert!(strftime("%", 0).is_err());
    }
}
