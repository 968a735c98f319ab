//! Dates and times in UTC, as RFC 3339 has them.

/// The date and time of milliseconds since 1970, to the second: `2026-01-31T12:00:00Z`.
pub fn utc(time_ms: u64) -> String {
    let seconds = time_ms / 1000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// The milliseconds since 1970 of a date and time of the form that [`utc`] writes.
pub fn parse_utc(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| -> Option<u64> {
        let digits = text.get(from..to)?;
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| digits.parse().ok())?
    };
    let marks = [
        (4, "-"),
        (7, "-"),
        (10, "T"),
        (13, ":"),
        (16, ":"),
        (19, "Z"),
    ];
    let well_formed = marks
        .iter()
        .all(|(at, mark)| text.get(*at..*at + 1) == Some(mark));
    if text.len() != 20 || !well_formed {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let valid = year >= 1970
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    let days = valid.then(|| days(year, month, day))?;
    // Such as February 30.
    (date(days) == (year, month, day))
        .then_some((days * 86_400 + hour * 3600 + minute * 60 + second) * 1000)
}

/// Days since 1970 of a date. Years begin in March here, so that the day that some lack is the last.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The date of a number of days since 1970.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_and_read_in_utc() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_796_018_400, "2026-11-30T06:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds * 1000 + 7), text);
            assert_eq!(parse_utc(text), Some(seconds * 1000));
        }
        for text in [
            "2026-02-30T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "2026-11-30 06:00:00Z",
            "2026-11-30T24:00:00Z",
            "2026-11-30T06:00:00",
            "+026-11-30T06:00:00Z",
            "1969-12-31T00:00:00Z",
        ] {
            assert_eq!(parse_utc(text), None, "{text}");
        }
        for day in 0..200_000 {
            let midnight = day * 86_400_000;
            assert_eq!(parse_utc(&utc(midnight)), Some(midnight), "day {day}");
        }
    }
}
