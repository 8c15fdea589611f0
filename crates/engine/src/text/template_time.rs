//! `strftime_now`: dates without a crate for them.

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
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// A moment of the Gregorian calendar, in UTC.
struct Moment {
    year: i64,
    month: usize,
    day: i64,
    day_of_year: i64,
    /// Monday is 0.
    weekday: usize,
    hour: i64,
    minute: i64,
    second: i64,
}

/// Formats a time in UTC the way Python's `datetime.strftime` does in the C locale. An unknown directive stays as it
/// is.
pub(super) fn strftime(format: &str, unix_s: i64) -> String {
    let moment = Moment::from_unix_s(unix_s);
    let mut out = String::with_capacity(format.len() + 16);
    let mut chars = format.chars();
    while let Some(char) = chars.next() {
        if char != '%' {
            out.push(char);
            continue;
        }
        match chars.next() {
            Some('-') => match chars.next() {
                Some(directive) => match moment.directive(directive) {
                    Some(text) => out.push_str(unpadded(&text)),
                    None => out.extend(['%', '-', directive]),
                },
                None => out.push_str("%-"),
            },
            Some(directive) => match moment.directive(directive) {
                Some(text) => out.push_str(&text),
                None => out.extend(['%', directive]),
            },
            None => out.push('%'),
        }
    }
    out
}

fn unpadded(text: &str) -> &str {
    let trimmed = text.trim_start_matches([' ', '0']);
    if trimmed.is_empty() && !text.is_empty() { "0" } else { trimmed }
}

impl Moment {
    fn from_unix_s(unix_s: i64) -> Self {
        let (days, seconds) = (unix_s.div_euclid(86_400), unix_s.rem_euclid(86_400));
        let (year, month, day) = civil(days);
        Self {
            year,
            month,
            day,
            day_of_year: days - days_before(year, 1, 1) + 1,
            weekday: (days + 3).rem_euclid(7) as usize, // 1 January 1970 was a Thursday
            hour: seconds / 3_600,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }

    fn directive(&self, directive: char) -> Option<String> {
        let all = |formats: &[(&str, char)]| -> Option<String> {
            formats.iter().map(|(before, part)| Some(format!("{before}{}", self.directive(*part)?))).collect()
        };
        let hour_12 = (self.hour + 11) % 12 + 1;
        Some(match directive {
            'Y' => format!("{:04}", self.year),
            'y' => format!("{:02}", self.year.rem_euclid(100)),
            'C' => format!("{:02}", self.year.div_euclid(100)),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'H' => format!("{:02}", self.hour),
            'I' => format!("{hour_12:02}"),
            'k' => format!("{:2}", self.hour),
            'l' => format!("{hour_12:2}"),
            'M' => format!("{:02}", self.minute),
            'S' => format!("{:02}", self.second),
            'f' => "000000".to_string(),
            'j' => format!("{:03}", self.day_of_year),
            'u' => format!("{}", self.weekday + 1),
            'w' => format!("{}", (self.weekday + 1) % 7),
            'B' => MONTHS[self.month - 1].to_string(),
            'b' | 'h' => MONTHS[self.month - 1][..3].to_string(),
            'A' => DAYS[self.weekday].to_string(),
            'a' => DAYS[self.weekday][..3].to_string(),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.to_string(),
            'Z' | 'z' => String::new(), // Python's naive datetime has no zone
            'F' => return all(&[("", 'Y'), ("-", 'm'), ("-", 'd')]),
            'T' | 'X' => return all(&[("", 'H'), (":", 'M'), (":", 'S')]),
            'R' => return all(&[("", 'H'), (":", 'M')]),
            'D' | 'x' => return all(&[("", 'm'), ("/", 'd'), ("/", 'y')]),
            'c' => return all(&[("", 'a'), (" ", 'b'), (" ", 'e'), (" ", 'T'), (" ", 'Y')]),
            'n' => "\n".to_string(),
            't' => "\t".to_string(),
            '%' => "%".to_string(),
            _ => return None,
        })
    }
}

/// Days from 1 January 1970 to a date, after Howard Hinnant's `days_from_civil`: years begin in March, so that the
/// leap day is the last.
fn days_before(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Year, month and day of a number of days since 1 January 1970: `civil_from_days` of the same source.
fn civil(days: i64) -> (i64, usize, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month as usize, day)
}
